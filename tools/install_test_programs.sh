#!/bin/sh
# Installs what some tests start, from Debian, where that is possible; says so where it is not: Slurm and munge for the
# tests on a private Slurm, Chromium for those of the service's page and the report.
set -u
PATH="$PATH:/usr/sbin:/sbin"
packages=
for program in slurmctld slurmd munged mungekey sbatch; do
    command -v "$program" >/dev/null 2>&1 || packages="slurmctld slurmd slurm-client munge"
done
command -v chromium >/dev/null 2>&1 || packages="$packages chromium"
packages=${packages# }
[ -n "$packages" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed, and apt-get is not here: $packages: tests that need them will be skipped"
    exit 0
fi
run=
if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        run="sudo -n"
    else
        echo "not installed, and this is not root: $packages: tests that need them will be skipped"
        exit 0
    fi
fi
echo "installing for the tests, from Debian: $packages"
if ! { $run apt-get update -qq && $run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    $packages >/dev/null; }; then
    echo "could not be installed: $packages: tests that need them will be skipped"
fi
exit 0
