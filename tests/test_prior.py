from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from srft.method.fisher import load_prior, weights_hash
from tests.test_fisher import estimate, net, samples


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load(tmp_path, dtype):
    model = net()
    prior = estimate(model, samples(), 3, data="twelve points", dtype=dtype)
    path = tmp_path / "new" / "prior.safetensors"
    prior.save(path)
    assert [f.name for f in path.parent.iterdir()] == ["prior.safetensors"]
    back = load_prior(path, base_hash=weights_hash(model.state_dict()))
    assert replace(back, groups={}).__dict__ == replace(prior, groups={}).__dict__
    for name, p in prior.groups.items():
        q = back.groups[name]
        assert q.eigenvectors.dtype == dtype
        assert torch.equal(p.eigenvectors, q.eigenvectors)
        assert torch.equal(p.eigenvalues, q.eigenvalues)
        assert (p.group, p.trace, p.next_eigenvalue) == (q.group, q.trace, q.next_eigenvalue)
    prior.truncated(1).save(path)
    assert load_prior(path, base_hash=prior.base_hash).rank == 1


@pytest.mark.parametrize("storage", [None, torch.float64, torch.bfloat16, torch.int8])
def test_diagonals_take_eight_bits_where_vectors_take_few(tmp_path, storage):
    prior, path = estimate(net(), samples(), 3, diagonal=True), tmp_path / "prior.safetensors"
    prior.save(path, storage=storage)
    back = load_prior(path, base_hash=prior.base_hash)
    with safe_open(path, framework="pt") as file:
        kept = file.get_tensor("head.weight/diagonal")
    few = storage in (torch.bfloat16, torch.int8)
    assert kept.dtype == (torch.uint8 if few else torch.float32)
    for name, p in prior.groups.items():
        q = back.groups[name].diagonal
        assert q.dtype == torch.float32
        if not few:
            assert torch.equal(q, p.diagonal)
        seen = p.diagonal >= p.diagonal.max() * 2**-31.75
        assert ((q - p.diagonal).abs() <= 0.0443 * p.diagonal)[seen].all()
        assert (q[~seen] <= p.diagonal.max() * 2**-31.75).all()
    with pytest.raises(ValueError, match="share their vectors"):  # Of no eigenpairs, the diagonal alone.
        prior.truncated(0).carried({"a": "head.weight", "b": "head.weight"}).save(path)


def test_load_refuses_another_model_and_broken_files(tmp_path):
    path = tmp_path / "prior.safetensors"
    estimate(net(0), samples(), 3).save(path)
    other = weights_hash(net(1).state_dict())
    with pytest.raises(ValueError, match=f"prior.safetensors: estimated on weights .* the model has weights {other}"):
        load_prior(path, base_hash=other)
    with pytest.raises(ValueError, match="no such file"):
        load_prior(tmp_path / "none", base_hash=other)
    cut = tmp_path / "cut"
    cut.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cut: not a complete safetensors file"):
        load_prior(cut, base_hash=other)
    save_file({"x": torch.zeros(1)}, tmp_path / "weights")
    with pytest.raises(ValueError, match="format is None"):
        load_prior(tmp_path / "weights", base_hash=other)


def test_cached_files_of_another_format_are_never_met(tmp_path, monkeypatch):
    from srft.config import SRFTConfig, TrainConfig
    from srft.training import prior as cached

    config = TrainConfig(name="t", srft=SRFTConfig(give_back=0.0))  # without the diagonal
    prior, asked = estimate(net(), samples(), 1), []
    for unneeded in ("source_training", "SourcePairs"):
        monkeypatch.setattr(cached, unneeded, lambda *args, **kw: ())
    monkeypatch.setitem(cached._ESTIMATORS, "exact", lambda *args, **kw: asked.append(1) or prior)
    for name in ("srft-prior-0", "srft-prior-9"):
        monkeypatch.setattr(cached, "FORMAT", name)
        cached.source_prior(config, tmp_path, rank=1)
    assert len(asked) == len(list(tmp_path.iterdir())) == 2


def test_weights_hash_sees_names_values_and_types_not_order():
    state = net().state_dict()
    reference = weights_hash(state)
    assert weights_hash(dict(reversed(state.items()))) == reference
    changed = {**state, "head.bias": state["head.bias"] + 1e-6}
    renamed = {("x" if k == "unused" else k): v for k, v in state.items()}
    retyped = {**state, "head.bias": state["head.bias"].double()}
    assert len({reference, *(weights_hash(s) for s in (changed, renamed, retyped))}) == 4


def test_key_map_shares_one_storage_between_copies(tmp_path):
    prior = estimate(net(), samples(), 3)
    key_map = {
        f"{stream}.{part}": part for stream in ("rgb", "aux", "fusion") for part in ("qkv.weight", "head.weight", "norm.running_mean")
    }
    carried = prior.carried(key_map)
    assert set(carried.groups) == {
        f"{s}.{g}" for s in ("rgb", "aux", "fusion") for g in ("qkv.weight:q", "qkv.weight:k", "qkv.weight:v", "head.weight")
    }
    for name, p in carried.groups.items():
        source = prior.groups[name.split(".", 1)[1]]
        assert p.eigenvectors.data_ptr() == source.eigenvectors.data_ptr()
        assert p.group.name == name
    with pytest.raises(ValueError, match="share their vectors"):
        carried.save(tmp_path / "prior")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="none of its 1 sources has a prior"):
        prior.carried({"a": "qkv.wieght"})
