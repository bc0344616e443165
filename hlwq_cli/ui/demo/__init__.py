"""The page of `hlwq demo`: a chat with a checkpoint, beside what the checkpoint is."""
