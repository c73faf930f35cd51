"""One module per command of ``srft``: its options as a frozen dataclass and ``run``, which imports what it needs when called."""
