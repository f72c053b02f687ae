class Task:
    def __init__(self, *, backbone, data, optimizer, scheduler, channels_last, compile, smoothing: float = 0.0):
        pass
