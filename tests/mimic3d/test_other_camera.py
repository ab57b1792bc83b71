"""Images whose generator was conditioned on another camera than the one they are rendered from."""

import torch
from test_evaluation import G, cameras  # noqa: F401 (fixtures)

from mimic3d.evaluation.generated import generated_images

torch.set_num_threads(1)


def test_another_camera_changes_the_object_not_the_view(G, cameras) -> None:  # noqa: F811
    options = {"seed": 3, "branches": ["3d"]}
    (same,), (other,) = (
        generated_images(G, cameras, range(4), other_camera=told, **options) for told in (False, True)
    )
    assert not torch.equal(same["3d"], other["3d"])
    one = cameras[:1]
    (same,), (other,) = (
        generated_images(G, one, range(4), other_camera=told, **options) for told in (False, True)
    )
    assert torch.equal(same["3d"], other["3d"]), "with one camera there is no other"
