"""Exchanges weights with the tests: `save FOLDER` makes PyTorch files of FOLDER/entries.json and values.bin, `same A B`
says whether two files hold the same tensors, bit for bit."""

import collections
import json
import sys

import torch


def save(folder):
    with open(f"{folder}/entries.json") as file:
        entries = json.load(file)
    values = torch.from_file(f"{folder}/values.bin", size=sum(e["len"] for e in entries), dtype=torch.float32)
    state, at = collections.OrderedDict(), 0
    for entry in entries:
        part = values[at : at + entry["len"]].reshape(entry["shape"]).clone()
        at += entry["len"]
        counts = entry["name"].endswith("num_batches_tracked")
        state[entry["name"]] = part.long() if counts else part
    parameters = [torch.nn.Parameter(t) for n, t in state.items() if t.is_floating_point() and "running" not in n]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    checkpoint = {"epoch": 3, "model_state": state, "optimizer_state": optimizer.state_dict(), "cfg": "TRAIN: {}"}
    torch.save(checkpoint, f"{folder}/new.pyth")
    torch.save(checkpoint, f"{folder}/old.pyth", _use_new_zipfile_serialization=False)
    torch.save(state, f"{folder}/plain.pth")


def tensors(path):
    content = torch.load(path, weights_only=True)
    return content.get("model_state", content)


def same(a, b):
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())[:5]
    for name, tensor in a.items():
        other = b[name]
        assert tensor.dtype == other.dtype and tensor.shape == other.shape, (name, tensor.dtype, other.dtype)
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other)]
        assert torch.equal(*bits), name


if __name__ == "__main__":
    {"save": save, "same": same}[sys.argv[1]](*sys.argv[2:])
    print("torch", torch.__version__)
