"""A look inside encoders: what each depth knows (`tubelet analyze`)."""
