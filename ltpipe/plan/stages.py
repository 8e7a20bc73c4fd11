"""The stages of a run in one table: what the command line, the rules, the report and the job server
know of each kind of artifact.
"""

from __future__ import annotations

from dataclasses import dataclass

RESULTS = "results"
MANIFEST = "manifest.json"
# Below an artifact's folder: what an interrupted job goes on from.
RESUME = "resume"
# The role of all samples' features, of which a draw takes its rows.
POOL = "pool"
# Leads to an experiment's newest report.
LATEST = "latest"


@dataclass(frozen=True)
class Stage:
    """One kind of artifact and the job that makes it.

    Attributes:
        kind: what specs call it.
        folder: where it lies below results/.
        command: the subcommand of `ltpipe` that makes one.
        title: what its jobs do, in words.
        files: what each artifact holds beside its manifest; the manifest is written last.
        module: the module that runs the job; None where a system or method brings its own.
        names: how many names stand between `folder` and the digest.
        memory: MiB, minutes: what a job asks for unless a profile says otherwise.
        gpu: whether a job runs on a GPU where there is one.
        threads: how many cores a job takes at most, unless a profile says otherwise.
    """

    kind: str
    folder: str
    command: str
    title: str
    files: tuple[str, ...]
    module: str | None = None
    names: int = 2
    memory: int = 4000
    minutes: int = 60
    gpu: bool = False
    threads: int = 1

    @property
    def rule(self) -> str:
        """The name of its Snakemake rule; `import` is a word of Python's."""
        return "import_features" if self.command == "import" else self.command

    @property
    def is_page(self) -> bool:
        """Whether it is written for people, from finished artifacts, and computes nothing."""
        return self.folder == "experiments"


_STORE = ("train.h5", "val.h5", "test.h5")
_REPORT = ("report.html", "summary.txt")

STAGES: dict[str, Stage] = {
    stage.kind: stage
    for stage in (
        Stage(
            "data",
            "data",
            "subset",
            "draw the long-tailed training subset of a data set",
            ("subset.h5",),
            "ltpipe.data.drawing",
            names=1,
            memory=2000,
            minutes=30,
        ),
        Stage(
            "images",
            "images",
            "decode",
            "decode a data set's image files once, into one file",
            ("images.h5",),
            "ltpipe.data.packing",
            names=1,
            minutes=240,
            threads=8,
        ),
        Stage(
            "stage1",
            "stage1",
            "train",
            "train a backbone on images (stage one)",
            ("model.safetensors", "history.csv"),
            minutes=1440,
            gpu=True,
        ),
        Stage(
            "import",
            "features",
            "import",
            "import embeddings from elsewhere into the feature store",
            _STORE,
            "ltpipe.features.importing",
        ),
        Stage(
            "features",
            "features",
            "embed",
            "dump a trained backbone's features to the feature store",
            _STORE,
            "ltpipe.features.extract",
            minutes=480,
            gpu=True,
        ),
        Stage(
            "filter",
            "filters",
            "filter",
            "train one of DLSA's filters on cached features",
            ("filter.safetensors", "filter.h5", "history.csv"),
            "ltpipe.stage2.dlsa.filter",
            memory=8000,
            minutes=480,
            gpu=True,
        ),
        Stage(
            "stage2",
            "stage2",
            "classify",
            "train and evaluate a classifier on cached features (stage two)",
            ("models.safetensors", "predictions.h5", "metrics.csv"),
            minutes=120,
            gpu=True,
        ),
        Stage(
            "report",
            "experiments",
            "report",
            "write an experiment's tables, figures and report",
            (*_REPORT, "index.csv"),
            "ltpipe.evaluation.report",
            names=1,
        ),
        Stage(
            "overview",
            "experiments",
            "overview",
            "write the page over the experiments of a collection",
            (*_REPORT, "results.csv"),
            "ltpipe.evaluation.overview",
            names=1,
        ),
    )
}
COMMANDS: dict[str, Stage] = {stage.command: stage for stage in STAGES.values()}
# The folders of results/ that hold artifacts, and how many names lead to a digest in each.
NAMES: dict[str, int] = {stage.folder: stage.names for stage in STAGES.values()}
