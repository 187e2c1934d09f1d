"""Mix what you already have: a gate over three classifiers, which of them leads where, and what asking fewer costs."""

from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from moeapps import MixtureClassifier

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
X, X_test, y, y_test = train_test_split(X, y, stratify=y, random_state=0)
linear = make_pipeline(StandardScaler(), LogisticRegression())
experts = [("linear", linear), ("boosting", HistGradientBoostingClassifier(max_iter=50)), ("bayes", GaussianNB())]
model = MixtureClassifier(experts, random_state=0).fit(X, y)
print(model.candidates_.round(3).to_string(index=False))
print(f"{model.chosen_}: accuracy {model.score(X_test, y_test):.3f}")
print(model.weights(X_test).head(3).round(2))
print(model.regions(X_test, y_test)[["where", "rows", "leader", "score mixture"]].round(2).to_string(index=False))
