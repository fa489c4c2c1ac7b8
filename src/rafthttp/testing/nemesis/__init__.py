"""Real processes under faults, watched by clients that remember: is what they saw linearizable?

`servers` starts the processes, `network` parts them, `troubled` slows their disks and sets their
clocks from inside, `faults` decides what happens when, `clients` write, read and record, and `runs`
puts them together: `Rafts` in their own network namespaces where that is allowed.
"""
