"""The peer of the drift benchmark: Evidently's data drift preset with its defaults.

Runs in an environment of its own (`make peers`), so it imports nothing of this project:
`python evidently_peer.py WINDOWS.npz` reads an (R, C) reference and (W, n, C) windows whose first
`categories` columns are categories, and prints each window's share of drifted columns as a JSON
list.
"""

import json
import sys
import warnings
from typing import Any


def main(path: str) -> None:
    """Score every window of a file."""
    # Imported here: the project's own environment has no Evidently, and its tools read this file.
    import numpy as np

    with np.load(path) as file:
        reference = file["reference"]
        windows = file["windows"]
        categories = int(file["categories"])
    print(json.dumps([drifted_share(reference, window, categories) for window in windows]))


def drifted_share(reference: Any, window: Any, categories: int) -> float:
    """Share of columns that drifted, by Evidently's own choice of test and threshold for each."""
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    names = [f"c{column}" for column in range(reference.shape[1])]
    categorical = names[:categories]
    definition = DataDefinition(
        categorical_columns=categorical, numerical_columns=names[categories:]
    )

    def dataset(rows: Any) -> Any:
        frame = pd.DataFrame(rows, columns=names)
        # As text: the numbers of codes have no order.
        frame = frame.astype(dict.fromkeys(categorical, str))
        return Dataset.from_pandas(frame, data_definition=definition)

    run = Report([DataDriftPreset()]).run(dataset(window), dataset(reference))
    for metric in run.dict()["metrics"]:
        if metric["metric_name"].startswith("DriftedColumnsCount"):
            return float(metric["value"]["share"])
    raise LookupError("Evidently's report has no DriftedColumnsCount; pin its version")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1])
