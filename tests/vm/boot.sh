#!/bin/busybox sh
# Process 1 of the test machine: find the disks, make the usual mounts, run the tests, switch the machine off.
# Its arguments are pytest's; vm.python= on the kernel's command line is the interpreter.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod "$module"; done
tries=0
until [ -b /dev/vdb ] || [ "$tries" -ge 200 ]; do $b usleep 20000; tries=$((tries + 1)); done
$b mount -t ext4 /dev/vda /newroot || { echo "no base disk"; $b poweroff -f; }
$b mount -t ext4 /dev/vdb /newroot/repo || { echo "no tree disk"; $b poweroff -f; }
$b mount --move /proc /newroot/proc
$b mount --move /sys /newroot/sys
$b mount --move /dev /newroot/dev
exec $b switch_root /newroot /usr/bin/busybox sh /repo/tests/vm/guest.sh "$@"
