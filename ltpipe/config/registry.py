"""Every name that an experiment file may use, and the module that stands behind it.

The table is data. A module is imported when its name is asked for and not before, so editing
one method changes no other method's code identity, and planning imports no torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from ltpipe.utils.errors import InputError, nearest


@dataclass(frozen=True)
class Entry:
    """A registered name: where its code is, what it is, and which paper it comes from."""

    module: str
    attribute: str
    summary: str
    paper: str = ""


_CIFAR_RESNET = "He et al., CVPR 2016"
_TOWERS = "ltpipe.models.vision_language"
_CLIP = "Radford et al., ICML 2021"

REGISTRY: dict[str, dict[str, Entry]] = {
    "source": {
        "digits": Entry(
            "ltpipe.data.readers.digits",
            "read_digits",
            "scikit-learn's handwritten 8x8 digits",
            "Alpaydin and Kaynak, UCI 1998",
        ),
        "cifar10": Entry(
            "ltpipe.data.readers.cifar",
            "read_cifar10",
            "CIFAR-10 by its standard files",
            "Krizhevsky, 2009",
        ),
        "cifar100": Entry(
            "ltpipe.data.readers.cifar",
            "read_cifar100",
            "CIFAR-100 by its standard files",
            "Krizhevsky, 2009",
        ),
        "folder": Entry(
            "ltpipe.data.readers.folder", "read_folder", "an image folder, one folder a class"
        ),
        "list": Entry(
            "ltpipe.data.readers.lists",
            "read_lists",
            "images named by list files: ImageNet-LT, Places-LT, iNaturalist 2018",
            "Liu et al., CVPR 2019; Van Horn et al., CVPR 2018",
        ),
        "tiny-imagenet": Entry(
            "ltpipe.data.readers.tiny_imagenet",
            "read_tiny_imagenet",
            "Tiny-ImageNet-200 by its standard files",
            "Le and Yang, 2015",
        ),
        "voc": Entry(
            "ltpipe.data.readers.voc",
            "read_voc",
            "Pascal VOC 2012, the images that show one class (VOC-LT)",
            "Everingham et al., IJCV 2010",
        ),
        "medmnist": Entry(
            "ltpipe.data.readers.medmnist",
            "read_medmnist",
            "a MedMNIST file, such as octmnist",
            "Yang et al., Scientific Data 2023",
        ),
        "features": Entry(
            "ltpipe.data.readers.features", "read_features", "embeddings from elsewhere"
        ),
    },
    "network": {
        **{
            f"resnet{depth}": Entry(
                "ltpipe.models.resnet",
                f"resnet{depth}",
                f"CIFAR ResNet-{depth}, 64-d features, option-A shortcuts",
                _CIFAR_RESNET,
            )
            for depth in (8, 20, 32, 44, 56)
        },
        **{
            name: Entry(
                "ltpipe.models.torchvision_resnet",
                name,
                f"torchvision {title}, 2048-d features",
                paper,
            )
            for name, title, paper in (
                ("resnet50", "ResNet-50", _CIFAR_RESNET),
                ("resnet101", "ResNet-101", _CIFAR_RESNET),
                ("resnet152", "ResNet-152", _CIFAR_RESNET),
                ("resnext50", "ResNeXt-50 (32x4d)", "Xie et al., CVPR 2017"),
            )
        },
        **{
            f"bbn-{base}": Entry(
                "ltpipe.models.bilateral",
                f"bbn_{base}",
                f"{title} with two last blocks, for system bbn",
                "Zhou et al., CVPR 2020",
            )
            for base, title in (
                ("resnet8", "CIFAR ResNet-8"),
                ("resnet32", "CIFAR ResNet-32"),
                ("resnet50", "torchvision ResNet-50"),
            )
        },
    },
    "tower": {
        **{
            f"{name}{variant}": Entry(
                _TOWERS, "build_towers", f"CLIP towers {name} of open_clip{remark}", _CLIP
            )
            for name in (
                "RN50",
                "RN101",
                "RN50x4",
                "RN50x16",
                "RN50x64",
                "ViT-B-32",
                "ViT-B-16",
                "ViT-L-14",
                "ViT-L-14-336",
            )
            for variant, remark in (("", ""), ("-quickgelu", " with OpenAI's activation"))
        },
        "small-resnet": Entry(
            _TOWERS,
            "build_towers",
            "small CLIP towers for tiny images: a ResNet of four blocks",
            _CLIP,
        ),
        "small-vit": Entry(
            _TOWERS, "build_towers", "small CLIP towers for 8x8 images: a transformer", _CLIP
        ),
    },
    "loss": {
        "ce": Entry(
            "ltpipe.losses.softmax",
            "CrossEntropyLoss",
            "softmax cross-entropy",
            "Bridle, NIPS 1989",
        ),
        "focal": Entry(
            "ltpipe.losses.reweight",
            "FocalLoss",
            "cross-entropy that fades for samples already right",
            "Lin et al., ICCV 2017",
        ),
        "class-balanced": Entry(
            "ltpipe.losses.reweight",
            "ClassBalancedLoss",
            "cross-entropy weighted by the inverse effective number of samples",
            "Cui et al., CVPR 2019",
        ),
        "balanced-softmax": Entry(
            "ltpipe.losses.softmax",
            "BalancedSoftmaxLoss",
            "cross-entropy on logits shifted by the log class counts",
            "Ren et al., NeurIPS 2020",
        ),
        "logit-adjustment": Entry(
            "ltpipe.losses.softmax",
            "LogitAdjustedLoss",
            "cross-entropy on logits shifted by tau times the log prior",
            "Menon et al., ICLR 2021",
        ),
        "ldam": Entry(
            "ltpipe.losses.margin",
            "LDAMLoss",
            "cosine softmax with margins that grow as classes shrink",
            "Cao et al., NeurIPS 2019",
        ),
        "kps": Entry(
            "ltpipe.losses.margin",
            "KPSLoss",
            "key-point sensitive loss: class-wise scales and margins on cosines",
            "Li et al., TPAMI 2022",
        ),
        "label-smoothing": Entry(
            "ltpipe.losses.smoothing",
            "LabelSmoothingLoss",
            "cross-entropy with a share of the target on all classes",
            "Szegedy et al., CVPR 2016",
        ),
        "label-aware-smoothing": Entry(
            "ltpipe.losses.smoothing",
            "LabelAwareSmoothingLoss",
            "label smoothing that is stronger for frequent classes",
            "MiSLAS: Zhong et al., CVPR 2021",
        ),
    },
    "rule": {
        "none": Entry("ltpipe.training.rules", "none", "samples shuffled, all classes alike"),
        "rs": Entry(
            "ltpipe.training.rules",
            "resampling",
            "rare classes drawn more often",
            "Kang et al., ICLR 2020",
        ),
        "rw": Entry(
            "ltpipe.training.rules",
            "reweighting",
            "class weights by inverse frequency",
            "Cao et al., NeurIPS 2019",
        ),
        "cb-rw": Entry(
            "ltpipe.training.rules",
            "effective_reweighting",
            "class weights by the inverse effective number",
            "Cui et al., CVPR 2019",
        ),
        "drs": Entry(
            "ltpipe.training.rules",
            "resampling",
            "resampling deferred to the last epochs",
            "Cao et al., NeurIPS 2019",
        ),
        "drw": Entry(
            "ltpipe.training.rules",
            "reweighting",
            "reweighting deferred to the last epochs",
            "Cao et al., NeurIPS 2019",
        ),
        "dcb": Entry(
            "ltpipe.training.rules",
            "effective_reweighting",
            "weights by the effective number, deferred",
            "Cao et al., NeurIPS 2019",
        ),
    },
    "system": {
        "supervised": Entry(
            "ltpipe.stage1.supervised", "run", "one network, any loss, any rule, mixup at will"
        ),
        "bbn": Entry(
            "ltpipe.stage1.bbn",
            "run",
            "two branches, fed uniformly and reversely, mixed cumulatively",
            "Zhou et al., CVPR 2020",
        ),
        "paco": Entry(
            "ltpipe.stage1.paco",
            "run",
            "contrastive learning with class centres, a momentum encoder and a queue",
            "Cui et al., ICCV 2021",
        ),
        "hrjba-branch": Entry(
            "ltpipe.stage1.hrjba",
            "run",
            "one branch of the hybrid network: the head classes or the tail classes",
            "HRJBA",
        ),
        "cws": Entry(
            "ltpipe.stage1.cws.job",
            "run",
            "classes split into shells around moving centres, relabelled in every batch",
            "CWS",
        ),
        "vision-language": Entry(
            "ltpipe.stage1.vision_language",
            "run",
            "image and text towers, fine-tuned on prompts of the class names",
            "ECVL, phase I; BALLAD: Ma et al., 2021",
        ),
    },
    "method": {
        "own-classifier": Entry(
            "ltpipe.stage2.simple.own_classifier",
            "run",
            "the classifier that stage one trained, as it stands",
            "joint training in Kang et al., ICLR 2020",
        ),
        "ffn": Entry(
            "ltpipe.stage2.ffn.job",
            "run",
            "feature fusion: CE and KPS features under one cosine classifier, LDAM",
            "FFN",
        ),
        "logit-fusion": Entry(
            "ltpipe.stage2.ffn.logit_fusion",
            "run",
            "the CE and KPS classifiers' outputs mixed, nothing trained",
            "FFN, Fig. 4",
        ),
        "label-mapping": Entry(
            "ltpipe.stage2.cws.label_mapping",
            "run",
            "from subclass scores to classes: a perceptron, the alternating one, or the sum",
            "CWS",
        ),
        "cached-splitting": Entry(
            "ltpipe.stage2.cws.cached_splitting",
            "run",
            "cached features split into shells, a classifier over them, a mapping",
            "CWS",
        ),
        "hrjba": Entry(
            "ltpipe.stage2.hrjba.job",
            "run",
            "head and tail branch joined: by an oracle, a router, or a classifier on both",
            "HRJBA",
        ),
        "oracle-mask": Entry(
            "ltpipe.stage2.hrjba.oracle_mask",
            "run",
            "stage one's classifier, told whether a sample is of a head or a tail class",
            "HRJBA",
        ),
        "dlsa": Entry(
            "ltpipe.stage2.dlsa.job",
            "run",
            "a cascade of flow filters, each with a cluster-aided classifier",
            "DLSA",
        ),
        "ecvl": Entry(
            "ltpipe.stage2.ecvl.job",
            "run",
            "an adapter on CLIP features, momentum loss, memory-controlled RandAugment",
            "ECVL; BALLAD: Ma et al., 2021",
        ),
        "zero-shot": Entry(
            "ltpipe.stage2.simple.zero_shot",
            "run",
            "the nearest class text of each image, nothing trained",
            "Radford et al., ICML 2021",
        ),
        "classifier": Entry(
            "ltpipe.stage2.simple.classifier",
            "run",
            "a classifier retrained on features: any head, loss and sampler (cRT by default)",
            "Kang et al., ICLR 2020",
        ),
        "lws": Entry(
            "ltpipe.stage2.simple.lws",
            "run",
            "the stage-one classifier with one learned factor a class",
            "Kang et al., ICLR 2020",
        ),
        "stacked": Entry(
            "ltpipe.stage2.simple.stacked",
            "run",
            "other methods' predictions in one, weighted by held-out samples",
            "ltpipe",
        ),
        "tau-norm": Entry(
            "ltpipe.stage2.simple.tau_norm",
            "run",
            "the stage-one classifier with its rows' norms evened out",
            "Kang et al., ICLR 2020",
        ),
        "ncm": Entry(
            "ltpipe.stage2.simple.ncm",
            "run",
            "the nearest class mean of centred unit features",
            "Kang et al., ICLR 2020",
        ),
        "logit-adjusted": Entry(
            "ltpipe.stage2.simple.logit_adjusted",
            "run",
            "the stage-one classifier's logits less the log prior",
            "Menon et al., ICLR 2021",
        ),
        "mislas": Entry(
            "ltpipe.stage2.simple.mislas",
            "run",
            "label-aware smoothing and learned factors on the stage-one classifier",
            "Zhong et al., CVPR 2021",
        ),
        "m2m": Entry(
            "ltpipe.stage2.simple.m2m",
            "run",
            "rare classes enriched by features translated from frequent ones",
            "Kim et al., CVPR 2020",
        ),
        "ride": Entry(
            "ltpipe.stage2.simple.ride",
            "run",
            "several experts on the same features, kept diverse",
            "Wang et al., ICLR 2021",
        ),
    },
}


def check_name(kind: str, name: str) -> str:
    """Return `name`, or raise InputError with the nearest registered name of this kind."""
    if name not in REGISTRY[kind]:
        known = ", ".join(REGISTRY[kind])
        raise InputError(f"unknown {kind} {name!r}{nearest(name, REGISTRY[kind])}; known: {known}")
    return name


def module_of(kind: str, name: str) -> str:
    """Return the module that defines `name`."""
    return REGISTRY[kind][check_name(kind, name)].module


def load(kind: str, name: str) -> Any:
    """Import and return what `name` stands for."""
    entry = REGISTRY[kind][check_name(kind, name)]
    return getattr(importlib.import_module(entry.module), entry.attribute)
