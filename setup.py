"""What a wheel holds; all else about the package stands in pyproject.toml.

The folders of a checkout are named for people, those of a wheel for Python: the plugin's package is `turboprop`, the
configs and the small models lie in it, and launch.py is a module of a package that is safe to import beside others.
"""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

PLUGIN = "custom/turboprop"
FOLDERS = {
    "turboprop": PLUGIN,
    "turboprop.configs": "configs",
    "turboprop.assets": "assets",
    "turboprop_command": ".",  # its only module is launch.py
}


class BuildModules(build_py):
    """Leaves this file out of the package that holds launch.py."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != "setup"]


setup(
    cmdclass={"build_py": BuildModules},
    packages=[
        *find_packages(include=["threestudio", "threestudio.*"]),
        *(f"turboprop.{name}" for name in find_packages(PLUGIN)),
        *FOLDERS,
    ],
    package_dir=FOLDERS,
    include_package_data=False,
    package_data={
        "turboprop": ["world/libraries/*.json"],
        "turboprop.configs": ["**/*.yaml"],
        "turboprop.assets": ["**/*"],
    },
)
