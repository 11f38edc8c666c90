"""The peer of the drift benchmark: Evidently's data drift preset, defaults, on the same windows.

Runs in an environment of its own (`make peers`), so it knows nothing of this project: `python evidently_peer.py WINDOWS.npz` reads
an (R, C) reference and (W, n, C) windows whose first `categories` columns are categories, and prints the shares of drifted
columns as a JSON list.
"""

import json
import sys
import warnings
from typing import Any


def main(path: str) -> None:
    """Score every window of a file."""
    import numpy as np

    with np.load(path) as file:
        reference, windows, categories = file["reference"], file["windows"], int(file["categories"])
    print(json.dumps([share(reference, window, categories) for window in windows]))


def share(reference: Any, window: Any, categories: int) -> float:
    """Share of columns that drifted, by Evidently's own choice of test and threshold for each."""
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    names = [f"c{at}" for at in range(reference.shape[1])]
    definition = DataDefinition(
        categorical_columns=names[:categories], numerical_columns=names[categories:]
    )

    def dataset(rows: Any) -> Any:
        frame = pd.DataFrame(rows, columns=names)
        return Dataset.from_pandas(
            frame.astype(dict.fromkeys(names[:categories], str)), data_definition=definition
        )

    run = Report([DataDriftPreset()]).run(dataset(window), dataset(reference))
    found = next(
        one for one in run.dict()["metrics"] if one["metric_name"].startswith("DriftedColumnsCount")
    )
    return float(found["value"]["share"])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1])
