"""Random numbers that go by the names of Gaussians."""

import torch
from turboprop.gaussians.names import children, first_names, mixed, normals_by_name

CPU = torch.device("cpu")


def test_mixing_is_splitmix64s():
    def finalizer(x: int) -> int:
        whole = 2**64 - 1
        x &= whole
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & whole
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & whole
        return x ^ (x >> 31)

    for value in (0, 1, 12345, -7, 2**62, -(2**63)):
        assert int(mixed(torch.tensor(value))) % 2**64 == finalizer(value)


def test_numbers_are_standard_normal_and_independent():
    drawn = normals_by_name(first_names(50_000, CPU), 77, 3)
    assert torch.allclose(drawn.mean(0), torch.zeros(3), atol=0.02)
    assert torch.allclose(torch.cov(drawn.T), torch.eye(3), atol=0.03)
    assert abs(float((drawn**4).mean()) - 3) < 0.1  # the fourth moment of a normal
    assert abs(float((drawn[1:, 0] * drawn[:-1, 0]).mean())) < 0.02  # neighbours


def test_numbers_go_by_name_and_key():
    names = first_names(10, CPU)
    order = torch.randperm(10)
    assert torch.equal(normals_by_name(names[order], 5, 3), normals_by_name(names, 5, 3)[order])
    assert not torch.equal(normals_by_name(names, 5, 3), normals_by_name(names, 6, 3))


def test_children_have_names_of_their_own():
    names = first_names(100_000, CPU)
    found = torch.cat([names, *(children(names, step, half) for step in (50, 51) for half in (0, 1))])
    assert len(torch.unique(found)) == 500_000
