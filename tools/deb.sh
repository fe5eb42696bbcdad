#!/bin/bash
# Builds the Debian package into dist/, from what is committed, and has lintian look at it.
set -euo pipefail
cd "$(dirname "$0")/.."

work=build/deb
tree=$work/aemd
rm -rf $work
mkdir -p $tree dist
git archive HEAD | tar -x -C $tree
cp -r $tree/packaging/debian $tree/debian
cp $tree/systemd/aemd.{service,socket,sysusers,tmpfiles} $tree/debian/
for unit in aemd-{deputy,runner}.{service,socket}; do
    cp $tree/systemd/$unit $tree/debian/aemd.$unit
done
(cd $tree && dpkg-buildpackage --build=binary --unsigned-source --unsigned-changes)
lintian --fail-on error,warning --info $work/*.changes
mv $work/*.deb dist/
rm -rf $work
ls -l dist/*.deb
