"""How a stream of each format ends early, so that an SDK sees an answer its bound cut short."""
