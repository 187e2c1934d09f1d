"""Two tasks of one census table: MMoE and HoME side by side, and a look at their experts and gates.

python examples/recsys/census.py --picture-folder .
"""

import argparse
from pathlib import Path

from moeapps.recsys import MultiTaskRanker, census_income, census_schema


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="census-income.test.gz of the UCI repository; the sample without it")
    parser.add_argument("--picture-folder", type=Path, default=Path("."))
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    frame = census_income(options.data)
    cut = len(frame) * 8 // 10
    for name in ("mmoe", "home"):
        model = MultiTaskRanker(
            name, schema=census_schema(), batch_size=256, lr=2e-3, max_epochs=options.epochs, random_state=0
        )
        model.fit(frame[:cut], targets=["income", "never_married"])
        print(name, model.evaluate(frame[cut:]).round(4).to_string(index=False), sep="\n")
        diagnosis = model.diagnose(frame[cut : cut + 2000])
        for hint in diagnosis.hints() or ["experts and gates look healthy"]:
            print("  ", hint)
        diagnosis.plot(f"{name}, census-income").savefig(options.picture_folder / f"census-{name}.png", dpi=100)


if __name__ == "__main__":
    main()
