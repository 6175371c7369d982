from hypothesis import settings

settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("isolated")
