"""Imported first by the server that forks loading processes: signals that end a stage are for the process that trains.

Schedulers send them to every process of a job. A loading process that died of one would be missed in the step that is
still to be finished and saved, and many at once would end the run as one whose loading fails. All that are forked from
the server are as deaf as it is; they and it end with the process that trains.
"""

import signal

from voxscale.signals import SIGNALS

for number in SIGNALS:
    signal.signal(number, signal.SIG_IGN)
