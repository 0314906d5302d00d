"""Hyper-iNGP's parts: the hyper-network, and networks by prompt."""

import torch
from turboprop.amortized.hyper_network import HyperNetwork, SharedSpace, network_of_owner

import threestudio


def test_sizes_are_the_papers():
    """348,544 parameters make 2112 weights of the distance's network and 2240 of the colour's."""
    network = HyperNetwork(1024, 64, 1, [[32, 64, 1], [32, 64, 3]])
    assert sum(p.numel() for p in network.parameters()) == 348_544
    sdf, color = network(torch.randn(2, 1024))
    assert [w.shape for w in sdf] == [(2, 32, 64), (2, 64, 1)] and [w.shape for w in color] == [(2, 32, 64), (2, 64, 3)]
    assert sum(w[0].numel() for w in sdf) == 2112 and sum(w[0].numel() for w in color) == 2240


def test_defaults_are_the_papers():
    cfg = threestudio.find("Hyper-iNGP").Config()
    grid = cfg.pos_encoding_config
    finest = grid["base_resolution"] * grid["per_level_scale"] ** (grid["n_levels"] - 1)
    assert round(finest) == 4096 and grid["log2_hashmap_size"] == 19
    assert (cfg.hyper_dim, cfg.hyper_layers, cfg.hidden_dim, cfg.sphere_radius) == (64, 1, 64, 0.5)


def test_weights_by_hand():
    network = HyperNetwork(2, 3, 1, [[1, 2]])
    hidden = torch.nn.functional.silu(
        torch.nn.functional.layer_norm(torch.tensor([[1.0, 2.0]]) @ network.layers[0].weight.T, (3,))
    )
    expected = hidden @ network.layers[-1].weight.T
    torch.testing.assert_close(network(torch.tensor([[1.0, 2.0]]))[0][0], expected.reshape(1, 1, 2))


def test_rows_go_through_their_owners_network():
    torch.manual_seed(0)
    weights = [torch.randn(3, 4, 5, dtype=torch.double), torch.randn(3, 5, 2, dtype=torch.double)]
    x, owner = torch.randn(20, 4, dtype=torch.double), torch.tensor([2, 0, 2, 2] * 5)  # none of prompt 1
    for layer in weights:
        layer.requires_grad_()
    x.requires_grad_()
    out = network_of_owner(x, owner, weights)
    by_hand = torch.stack([torch.relu(row @ weights[0][p]) @ weights[1][p] for row, p in zip(x, owner)])
    torch.testing.assert_close(out, by_hand)
    factor = torch.randn_like(out)
    for one, other in zip(
        torch.autograd.grad((out * factor).sum(), [x, *weights]),
        torch.autograd.grad((by_hand * factor).sum(), [x, *weights]),
    ):
        torch.testing.assert_close(one, other)


def test_no_rows():
    weights = [torch.randn(2, 4, 5), torch.randn(2, 5, 3)]
    assert network_of_owner(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), weights).shape == (0, 3)


def test_spectral_norm_bounds_the_layers():
    network = HyperNetwork(8, 4, 1, [[2, 2]], spectral_norm=True)
    with torch.no_grad():
        network.layers[0].parametrizations.weight.original.mul_(50)
    network.train()
    for _ in range(30):
        network(torch.randn(1, 8))
    assert abs(float(torch.linalg.matrix_norm(network.layers[0].weight.detach(), 2)) - 1) < 1e-2


def test_points_beyond_the_cube_have_its_sides_features():
    space = SharedSpace(torch.nn.Identity(), 2, 8, torch.zeros(1))
    found = space.features(torch.tensor([[-1.5, 0.0, 2.0]]), torch.tensor([1]))
    assert found.tolist() == [[0.0, 0.5, 1.0]]
