from hypothesis import settings

# Time limits of single examples would fail on a busy machine.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
