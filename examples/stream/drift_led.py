"""A stream with three abrupt drifts: one Hoeffding tree, the paper's DriftMoE, and ours, side by side.

python examples/stream/drift_led.py --n 20000
"""

import argparse

from river import tree

from moeapps.stream import DriftMoEClassifier, plot_prequential, prequential, synthetic_stream


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=20_000, help="instances")
    parser.add_argument("--picture", default="led-abrupt.png")
    options = parser.parse_args()
    stream = synthetic_stream("led_abrupt", n=options.n, seed=1)
    models = {
        "one Hoeffding tree (river)": tree.HoeffdingTreeClassifier(grace_period=50),
        "DriftMoE, the paper's": DriftMoEClassifier.paper("data", seed=1),
        "DriftMoE": DriftMoEClassifier(seed=1),
    }
    results = {}
    for name, model in models.items():
        results[name] = found = prequential(model, stream, window=options.n // 40)
        print(f"{name:28} {100 * found.scores['accuracy']:.2f} %  {found.instances_per_second:,.0f} instances/s")
    figure = plot_prequential(results, drifts=stream.drifts, title="LED, 1, 3, 5 and 7 of 24 features change places")
    figure.savefig(options.picture, dpi=110)
    print("drawn to", options.picture)


if __name__ == "__main__":
    main()
