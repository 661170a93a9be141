#!/bin/bash
# launch/node.sh for a scheduler that starts again by exit status, such as Kubernetes and SkyPilot; the same arguments.
# Hands SIGTERM and SIGUSR1 on. Exit status: 0 complete, 75 saved and wants to go on, anything else a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/preemption.sh
preemptible "TERM USR1" launch/node.sh "$@"
