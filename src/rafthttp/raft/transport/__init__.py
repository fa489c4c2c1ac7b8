"""How servers reach each other: streams, pools, pipelines."""
