from . import background, exporters, geometry, guidance, materials, prompt_processors, renderers
