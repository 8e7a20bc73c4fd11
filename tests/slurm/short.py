"""Write an experiment of a hundred short classifiers; count the submissions that ran them.

short.py write FOLDER       features and experiment file
short.py count              1 unless the classifiers came in at most five submissions
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import yaml
from timeline import jobs

CLASSIFIERS, MOST = 100, 5


def write(folder: Path) -> None:
    """Write embeddings of three classes, and an experiment with a classifier for each seed."""
    stream = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), [30, 12, 6])
    for split in ("train", "test"):
        features = stream.standard_normal((len(labels), 8)) + 2 * np.eye(3, 8)[labels]
        np.savez(folder / f"{split}.npz", features=features.astype(np.float32), labels=labels)
    store = {split: str(folder / f"{split}.npz") for split in ("train", "test")}
    experiment = {
        "experiment": "short",
        "seeds": list(range(CLASSIFIERS)),
        "datasets": {"points": {"source": "features", "stores": {"net": store}}},
        "methods": {"NCM": {"kind": "ncm", "backbones": {"features": "net"}}},
        "tables": {"main": {"rows": [{"method": "NCM"}]}},
    }
    (folder / "short.yaml").write_text(yaml.safe_dump(experiment))


def count() -> int:
    """Print how many submissions there were of what, as SLURM remembers them."""
    comments = [job.get("Comment", "") for job in jobs(Path.cwd())]
    groups = [comment for comment in comments if comment.endswith("short_classify")]
    single = [comment for comment in comments if comment.startswith("rule_classify")]
    done = len(list(Path("results/stage2").glob("*/*/*/*/manifest.json")))
    print(f"{done} classifiers in {len(groups)} submissions of groups and {len(single)} of one")
    return 0 if done == CLASSIFIERS and 0 < len(groups) + len(single) <= MOST else 1


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]).absolute())
    else:
        sys.exit(count())
