"""A model of census-income, judged on rows that it has not seen: the page whose beginning is in the README.

Writes income.safetensors, test.csv and income.html into the working folder; the last one is also what
``moeapps report income.safetensors --data test.csv --target income --output income.html`` writes.
"""

import argparse

from moeapps import MoEClassifier
from moeapps.recsys import census_income
from moeapps.report import model_report

parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
parser.add_argument("--rows", type=int, default=8000, help="rows; a fifth is kept for the page")
options = parser.parse_args()
people = census_income()[: options.rows].drop(columns=["never_married", "instance_weight", "year"])
people["income"] = people["income"].map({0: "50,000 or less", 1: "above 50,000"})
train, test = people[: 4 * len(people) // 5], people[4 * len(people) // 5 :]
model = MoEClassifier(random_state=0).fit(train.drop(columns="income"), train["income"])
model.save("income.safetensors")
test.to_csv("test.csv", index=False)
print(model_report(model, test.drop(columns="income"), test["income"], "income.html", target="income"))
