"""Two threads that write the same demo set at the same time."""

import threading


def in_step(monkeypatch, module):
    """From here on two writers of a module both complete their drafts before either is renamed."""
    both, write = threading.Barrier(2), module._write

    def together(*args):
        write(*args)
        both.wait(60)

    monkeypatch.setattr(module, "_write", together)


def twice_at_once(write, *args, **kwargs):
    """Call a function in two threads, and wait for both."""
    writers = [threading.Thread(target=write, args=args, kwargs=kwargs) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
