"""Weight files are made here and served from localhost; they replace entries of the table, never its checks."""

import contextlib
import dataclasses
import hashlib
import pickle
import re
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from cropkit import create_model, get_classifier, open_photo
from cropkit.data import transforms_for
from cropkit.models import MissingWeights, has_weights, read_state_dict
from cropkit.models.weights import LITE_FILES, WEIGHT_FILES, WeightFile, find_weights


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def served(tmp_path):
    """A folder and the address under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def publish(monkeypatch, folder, address, arch="resnet18"):
    """Made weights under the right names, and a table entry that states their address and hash."""
    state = create_model(arch, weights=None).state_dict()
    torch.save(state, folder / "made.pth")
    digest = hashlib.sha256((folder / "made.pth").read_bytes()).hexdigest()
    monkeypatch.setitem(WEIGHT_FILES, arch, WeightFile("made.pth", f"{address}/made.pth", digest[:8]))
    return state


def test_table_holds_an_address_and_a_hash_for_every_file():
    for arch, file in WEIGHT_FILES.items():
        assert len(file.sha256) >= 8, arch
        assert int(file.sha256, 16) >= 0
        assert file.url.startswith("https://") or file.package
    assert WEIGHT_FILES["alexnet"].name == "alexnet-owt-7be5be79.pth"
    assert WEIGHT_FILES["resnet18"].name == "resnet18-f37072fd.pth"


@pytest.mark.parametrize(("arch", "tensors"), [(f"efficientnet_lite{k}", n) for k, n in enumerate((296, 386, 386))])
def test_lite_models_hold_the_published_weights(arch, tensors):
    model = create_model(arch)
    state = read_state_dict(find_weights(arch))
    assert len(state) == len(model.state_dict()) == tensors
    assert all(a.shape == b.shape for a, b in zip(model.state_dict().values(), state.values(), strict=True))
    assert torch.equal(model.classifier.weight, state["_fc.weight"])
    assert torch.equal(model.bn1.running_var, state["_bn0.running_var"])


# Classes of grocery36 that ImageNet has too, and what it calls them.
IN_IMAGENET = {
    "banana": "banana",
    "cucumber": "cucumber",
    "lemon": "lemon",
    "orange": "orange",
    "pineapple": "pineapple",
    "pomegranate": "pomegranate",
}


@pytest.mark.parametrize("arch", LITE_FILES)
def test_lite_models_name_real_photos_of_imagenets_classes(arch, real_data):
    photos = pd.read_csv(real_data / "index.csv").query("label in @IN_IMAGENET").groupby("label").head(10)
    model = create_model(arch).eval()
    batch = torch.stack([transforms_for(model)(open_photo(real_data / path, min_side=300)) for path in photos["path"]])
    with torch.no_grad():
        answers = model(batch).argmax(dim=1)
    names = torchvision.models.AlexNet_Weights.DEFAULT.meta["categories"]  # ImageNet's, the same for all
    right = [names[answer] == IN_IMAGENET[label] for answer, label in zip(answers, photos["label"], strict=True)]
    assert sum(right) > len(photos) / 2


def test_weights_are_downloaded_once_and_loaded(cache, served, monkeypatch):
    state = publish(monkeypatch, *served)
    assert torch.equal(create_model("resnet18").fc.weight, state["fc.weight"])
    (served[0] / "made.pth").unlink()  # from now on only the cache has it
    assert torch.equal(create_model("resnet18", num_classes=3).conv1.weight, state["conv1.weight"])


def test_it_is_known_which_weights_need_no_download(cache, served, monkeypatch):
    publish(monkeypatch, *served)
    assert has_weights("efficientnet_lite0") and not has_weights("resnet18") and not has_weights("timm/resnet18")
    create_model("resnet18")
    assert has_weights("resnet18")


def test_cached_file_is_hashed_again_at_every_load(cache, served, monkeypatch):
    publish(monkeypatch, *served)
    create_model("resnet18")
    data = bytearray((cache / "made.pth").read_bytes())
    data[-1] ^= 1
    (cache / "made.pth").write_bytes(data)
    with pytest.raises(ValueError, match=r"made\.pth: SHA-256.*Delete it"):
        create_model("resnet18")


def test_download_with_a_wrong_hash_leaves_nothing_behind(cache, served, monkeypatch):
    publish(monkeypatch, *served)
    wrong = dataclasses.replace(WEIGHT_FILES["resnet18"], sha256="0" * 8)
    monkeypatch.setitem(WEIGHT_FILES, "resnet18", wrong)
    with pytest.raises(MissingWeights, match="hash"):
        create_model("resnet18")
    assert list(cache.iterdir()) == []


def test_missing_weights_name_file_address_and_place(cache, monkeypatch):
    with socket.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/made.pth"
    monkeypatch.setitem(WEIGHT_FILES, "resnet18", WeightFile("made.pth", address, "0" * 8))
    with pytest.raises(MissingWeights) as caught:
        create_model("resnet18")
    assert address in str(caught.value)
    assert str(cache / "made.pth") in str(caught.value)


@pytest.fixture(scope="module")
def mine():
    return create_model("mobilenet_v3_large", weights=None, num_classes=10)


@pytest.mark.parametrize("wrapping", ["bare", "state_dict", "model", "module.", "both", "safetensors"])
def test_own_checkpoint_is_loaded_however_it_is_wrapped(mine, tmp_path, wrapping):
    state = mine.state_dict()
    path = tmp_path / ("mine.safetensors" if wrapping == "safetensors" else "mine.pth")
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    if wrapping == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        content = {
            "bare": state,
            "state_dict": {"epoch": 3, "state_dict": state},
            "model": {"model": state},
            "module.": prefixed,
            "both": {"state_dict": prefixed},
        }
        torch.save(content[wrapping], path)
    kept = create_model("mobilenet_v3_large", weights=path)
    assert torch.equal(kept.classifier[3].weight, mine.classifier[3].weight)
    replaced = create_model("mobilenet_v3_large", weights=path, num_classes=33)
    assert get_classifier(replaced)[1].out_features == 33
    assert torch.equal(replaced.features[0][0].weight, mine.features[0][0].weight)


def test_checkpoint_without_its_head_needs_num_classes(mine, tmp_path):
    state = {name: tensor for name, tensor in mine.state_dict().items() if not name.startswith("classifier.3")}
    torch.save(state, tmp_path / "headless.pth")
    assert get_classifier(create_model("mobilenet_v3_large", weights=tmp_path / "headless.pth", num_classes=4))
    with pytest.raises(ValueError, match=r"2 missing: classifier\.3\.weight, classifier\.3\.bias"):
        create_model("mobilenet_v3_large", weights=tmp_path / "headless.pth")


def test_checkpoint_of_another_architecture_lists_missing_and_unexpected(mine, tmp_path):
    torch.save(mine.state_dict(), tmp_path / "mine.pth")
    with pytest.raises(ValueError, match=r"does not fit resnet18 .*missing: conv1\.weight.*unexpected: features"):
        create_model("resnet18", weights=tmp_path / "mine.pth")


class Hostile:
    def __reduce__(self):
        return open, ("canary", "w")


def test_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Hostile()}, "torch.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Hostile()))
    for name in ("torch.pth", "plain.pth"):
        with pytest.raises(ValueError, match=name):
            read_state_dict(name)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", None])
def test_damaged_missing_or_foreign_files_are_named(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        read_state_dict(path)


def test_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"holds no state dict \(found: epoch\)"):
        read_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize("arch", ["mnasnet0_5", "densenet121", "vit_b_32", "googlenet"])
def test_published_files_with_older_names_still_fit(arch, tmp_path, monkeypatch):
    made = torchvision.models.get_model(arch, weights=None)
    state = made.state_dict()
    old = {name: re.sub(r"(denselayer\d+\.(?:norm|relu|conv))(?=[12]\.)", r"\1.", name) for name in state}
    old = {name: re.sub(r"\.mlp\.0\.", ".mlp.linear_1.", new) for name, new in old.items()}
    old = {name: re.sub(r"\.mlp\.3\.", ".mlp.linear_2.", new) for name, new in old.items()}
    for name, new in old.items():
        state[new] = state.pop(name)
    if arch == "vit_b_32":  # from before the names changed
        state._metadata = {name: {"version": 1} for name in state._metadata}
    torch.save(state, tmp_path / "made.pth")
    sha = hashlib.sha256((tmp_path / "made.pth").read_bytes()).hexdigest()
    cache = tmp_path / "checkpoints"
    cache.mkdir()
    (tmp_path / "made.pth").rename(cache / "made.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(WEIGHT_FILES, arch, WeightFile("made.pth", "http://127.0.0.1:9/made.pth", sha))
    loaded = create_model(arch).state_dict()
    theirs = made.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("content", [b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\n", b""])
def test_a_page_named_pth_is_called_damaged_not_dangerous(tmp_path, content):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pth: is damaged or no checkpoint"):
        read_state_dict(tmp_path / "model.pth")


def test_bit_flipped_checkpoints_raise_value_error_and_nothing_else(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "good.pth")
    good = bytearray((tmp_path / "good.pth").read_bytes())
    for place in range(0, len(good), 7):
        bad = bytearray(good)
        bad[place] ^= 0x55
        (tmp_path / "bad.pth").write_bytes(bad)
        with contextlib.suppress(ValueError):
            read_state_dict(tmp_path / "bad.pth")


@pytest.mark.parametrize("outputs", [1, 10, 33])
def test_a_checkpoints_head_of_any_size_gives_way_to_a_new_one(tmp_path, outputs):
    theirs = torchvision.models.resnet18(num_classes=outputs)
    torch.save(theirs.state_dict(), tmp_path / "mine.pth")
    model = create_model("resnet18", weights=tmp_path / "mine.pth", num_classes=33)
    assert model.fc.weight.shape == (33, 512)
    assert not (outputs == 33 and torch.equal(model.fc.weight, theirs.fc.weight))
    assert torch.equal(model.conv1.weight, theirs.conv1.weight)
