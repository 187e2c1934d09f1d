"""Handwritten digits, told apart by a WideNet and drawn by a Switch-DiT, and a look at what their experts do.

python examples/vision/digits.py --picture-folder .
"""

import argparse
from pathlib import Path

from sklearn.datasets import load_digits

from moeapps.core.plots import plot_load
from moeapps.vision import SwitchDiTGenerator, WideNetClassifier
from moeapps.vision.plots import plot_images, plot_patches, plot_timesteps, plot_trajectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture-folder", type=Path, default=Path("."))
    parser.add_argument("--epochs", type=int, default=20, help="of WideNet; Switch-DiT takes five times as many")
    options = parser.parse_args()
    folder = options.picture_folder
    X, y = load_digits().images, load_digits().target

    reader = WideNetClassifier(embed_dim=64, depth=4, max_epochs=options.epochs, random_state=0)
    reader.fit(X[:1400], y[:1400])
    print(f"WideNet reads {reader.score(X[1400:], y[1400:]):.1%} of the digits of other writers")
    plot_load(reader.expert_load(X[1400:], y[1400:])).savefig(folder / "digit-experts.png", dpi=100)
    shown = [int((y[1400:] == digit).argmax()) + 1400 for digit in range(10)]
    plot_patches(X[shown], reader.patch_experts(X[shown]), names=y[shown]).savefig(folder / "patches.png", dpi=100)

    artist = SwitchDiTGenerator(max_epochs=5 * options.epochs, random_state=0).fit(X, y)
    wanted = [digit for digit in range(10) for _ in range(10)]
    drawn = artist.sample(100, y=wanted, guidance=2.0)
    print(f"Switch-DiT draws digits of which WideNet reads {reader.score(drawn, wanted):.1%}")
    plot_images(drawn).savefig(folder / "drawn.png", dpi=70)
    way = artist.trajectory(5, y=[0, 2, 4, 7, 9], guidance=2.0)
    plot_trajectory(way, titles=[0, 2, 4, 7, 9]).savefig(folder / "denoising.png", dpi=80)
    plot_timesteps(artist.gate_table()).savefig(folder / "timesteps.png", dpi=100)


if __name__ == "__main__":
    main()
