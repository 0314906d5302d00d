"""The models that this project ships, and the one trainer that makes them: python -m custom.turboprop.small_models

`training.py` is the loop, `recipes/` says what each model is and what it is trained on, `cards.py` writes its page.
"""
