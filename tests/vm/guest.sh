# Second half of boot.sh, on the base disk.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 CI=false
mount -t tmpfs -o mode=0755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
mount --make-rshared /
ip link set lo up
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin; ln -sf /proc/self/fd/1 /dev/stdout; ln -sf /proc/self/fd/2 /dev/stderr
for module in /vm/modules/*; do insmod "$module" 2>/dev/null; done
python=$(tr ' ' '\n' </proc/cmdline | sed -n 's/^vm\.python=//p')
echo "@@vm@@ fact kernel $(uname -r)"
echo "@@vm@@ fact controllers $(cat /sys/fs/cgroup/cgroup.controllers)"
echo "@@vm@@ fact uptime $(cut -d' ' -f1 /proc/uptime)"
cd /repo
export PYTHONPATH=/repo/src:/repo SAMPAN_VM=1
"$python" -m pytest -q -p tests.vm.report -p no:cacheprovider --basetemp=/var/tmp/pytest "$@" </dev/null
echo "@@vm@@ fact end $(cut -d' ' -f1 /proc/uptime)"
echo "@@vm@@ done"
sync
poweroff -f
