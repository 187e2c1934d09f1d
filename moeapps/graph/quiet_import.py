"""PyG, imported without a warning of torch's: PyG scripts one of its classes when it is imported."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.")
    import torch_geometric.nn  # noqa: F401
