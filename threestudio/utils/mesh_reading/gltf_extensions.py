"""Extensions of glTF 2.0: which are read, which change nothing here, and what to do about the others."""

from __future__ import annotations

from typing import Any

import threestudio
from threestudio.utils.errors import UserError

SPECULAR_GLOSSINESS = "KHR_materials_pbrSpecularGlossiness"
TEXTURE_TRANSFORM = "KHR_texture_transform"
INSTANCING = "EXT_mesh_gpu_instancing"
DRACO = "KHR_draco_mesh_compression"
MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")
PICTURES = ("EXT_texture_webp", "EXT_texture_avif")  # textures whose picture Pillow reads
KTX2 = "KHR_texture_basisu"

READ = (SPECULAR_GLOSSINESS, TEXTURE_TRANSFORM, INSTANCING, "KHR_mesh_quantization", *PICTURES)
# They change neither the shape nor the base colour.
WITHOUT_EFFECT = (
    "KHR_animation_pointer", "KHR_lights_punctual", "KHR_xmp", "KHR_xmp_json_ld", "EXT_lights_image_based",
    "EXT_lights_ies", "VRM", "VRMC_vrm",
)  # fmt: skip
MATERIALS_PREFIX = "KHR_materials_"  # of layers over the base colour, and of variants beside the default

_DECOMPRESS = "write the file without compression, as with: gltf-transform cp in.glb out.glb"
_REMEDIES = {
    DRACO: _DECOMPRESS,
    **{name: _DECOMPRESS for name in MESHOPT},
    KTX2: "turn its KTX2 textures into PNG, as with: gltf-transform ktxdecompress in.glb out.glb",
}
_OTHER_REMEDY = "export the file without it"


def unread_extension(path: str, name: str) -> UserError:
    """The error for a file that cannot be read without the extension."""
    return UserError(f"{path} needs the glTF extension {name}, which is not read; {_REMEDIES.get(name, _OTHER_REMEDY)}")


def check_extensions(path: str, tree: dict[str, Any]) -> None:
    """Raises UserError for a required extension that is not read, and warns of one that is used."""
    required, used = (list(tree.get(key, [])) for key in ("extensionsRequired", "extensionsUsed"))
    for name in required:
        if not _is_known(name):
            raise unread_extension(path, name)
    unread = sorted({name for name in used if not _is_known(name)} - set(_REMEDIES))
    if unread:
        threestudio.warn(
            f"{path} uses the glTF extension{'s' * (len(unread) > 1)} {', '.join(unread)}, which is not read: what it "
            "adds to shape or colours is missing"
        )


def _is_known(name: str) -> bool:
    return name in READ or name in WITHOUT_EFFECT or name.startswith(MATERIALS_PREFIX)
