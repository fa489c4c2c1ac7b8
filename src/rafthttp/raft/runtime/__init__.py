"""The only caller of core: the driver, and its lanes to disk, peers and state machine."""
