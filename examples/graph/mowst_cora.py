"""Mowst on Cora behind scikit-learn's interface: fit, look inside, save, load, predict."""

import tempfile
from pathlib import Path

import moeapps
from moeapps.graph import GNNClassifier, MowstClassifier, PublicGraphData


def main() -> None:
    graph = PublicGraphData("Cora").prepared()  # 2,708 papers, embedded; a PyG Data of your own works the same

    gcn = GNNClassifier("gcn", norm=None, random_state=0).fit(graph)
    mowst = MowstClassifier("gcn", variant="mowst_star", norm=None, random_state=0).fit(graph)
    print(f"GCN alone  {gcn.score(graph):.3f} on the test nodes")
    print(f"Mowst*     {mowst.score(graph):.3f}, predicting with the {mowst.champion_}")

    print(f"confidence of the weak expert: {mowst.confidence_}")
    print(mowst.history_.groupby("stage")["val/accuracy"].agg(["count", "max"]))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mowst.safetensors"
        mowst.save(path)
        same = (moeapps.load(path).predict(graph) == mowst.predict(graph)).all()
        print(f"saved in {path.stat().st_size:,} bytes; loaded, it predicts the same: {same}")


if __name__ == "__main__":
    main()
