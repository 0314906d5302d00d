from . import base, dummy_prompt_processor
