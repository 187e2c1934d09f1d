"""A gate over three kinds of estimators on the embedded sample of Census-Income, and what a cascade saves.

python examples/tables/mixture_cost.py [--rows 8000] [--figure cost.png]
"""

import argparse

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from moeapps import MixtureClassifier
from moeapps.tables import TableData, TableFeatures, default_experts


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--figure", help="file for the picture of cost against accuracy")
    options = parser.parse_args()
    data = TableData(name="census-income", validation_fraction=0)
    data.setup("fit")
    part = data.part("train")
    frame, income = part.frame[: options.rows], part.target[: options.rows]
    train, test, known, truth = train_test_split(frame, income, test_size=0.25, random_state=0, stratify=income)
    portfolio = dict(default_experts(train, known, "classification", 0))
    few = make_pipeline(TableFeatures(max_categories=8), LogisticRegression(max_iter=500))
    experts = [("linear", few), ("boosting", portfolio["boosting"]), ("forest", portfolio["forest"])]
    mixture = MixtureClassifier(experts, cv=3, random_state=0).fit(train, known)
    print(mixture.candidates_.to_string(index=False))
    print(f"chosen: {mixture.chosen_}, accuracy {mixture.score(test, truth):.4f}")
    print(mixture.regions(test, truth).to_string(index=False))
    print(mixture.cost_curve(test, truth).to_string(index=False))
    if options.figure:
        mixture.plot_cost_curve(test, truth).savefig(options.figure, dpi=110)


if __name__ == "__main__":
    main()
