#!/bin/sh
# Installs Debian's Slurm for the tests that start a private one, where that is possible; says so where it is not.
set -u
for program in slurmctld slurmd munged mungekey sbatch; do
    command -v "$program" >/dev/null 2>&1 || PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null 2>&1 || missing=1
done
[ -n "${missing:-}" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
    echo "Slurm is not installed and apt-get is not here: the tests on a real Slurm will be skipped"
    exit 0
fi
run=
if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        run="sudo -n"
    else
        echo "Slurm is not installed and this is not root: the tests on a real Slurm will be skipped"
        exit 0
    fi
fi
echo "installing Debian's slurmctld, slurmd, slurm-client and munge for the tests"
if ! { $run apt-get update -qq && $run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    slurmctld slurmd slurm-client munge >/dev/null; }; then
    echo "Slurm could not be installed: the tests on a real Slurm will be skipped"
fi
exit 0
