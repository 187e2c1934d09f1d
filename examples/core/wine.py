"""A mixture of experts for a table, in one sitting: learn, look inside, make it smaller, save.

python examples/core/wine.py
"""

import tempfile
from pathlib import Path

from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split

import moeapps
from moeapps import MoEClassifier

# scikit-learn's wine set is embedded; any DataFrame of your own will do, with text columns and missing values.
X, y = load_wine(return_X_y=True, as_frame=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0, stratify=y)

# The router is one word: `moeapps list routers` prints them all.
for router in ("topk", "topp", "null_experts", "shared"):
    model = MoEClassifier(router=router, num_experts=8, random_state=0).fit(X_train, y_train)
    used = (model.expert_load(X_test, groups=y_test) > 0.02).sum(axis=1)
    print(f"{router:>12}: accuracy {model.score(X_test, y_test):.3f}, experts used by each class: {used.tolist()}")

# Half of the experts, chosen by use, and what that costs.
small = model.prune(4, X_train)
print(f"pruned to 4: accuracy {small.score(X_test, y_test):.3f}")

# One file, no pickle; the picture shows which class uses which expert.
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "wine.safetensors"
    small.save(file)
    assert (moeapps.load(file).predict(X_test) == small.predict(X_test)).all()
    model.plot_expert_load(X_test, groups=y_test).savefig(Path(folder) / "load.png")
