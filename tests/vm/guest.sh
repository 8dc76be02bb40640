#!/bin/busybox sh
# The guest's first process. In the initramfs it mounts the host's root, read-only under a layer that is thrown away, and
# starts itself again in it; there it runs /run/vm/command, whose output goes to the second serial port, and powers off.
B=/bin/busybox

if [ "$1" != in-root ]; then
    $B mount -t proc proc /proc
    $B mount -t sysfs sys /sys
    $B mount -t devtmpfs dev /dev
    $B modprobe -a virtio_pci virtio_rng 9pnet_virtio 9p overlay
    $B mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,ro root /lower || $B poweroff -f
    $B mount -t tmpfs -o size=60% tmpfs /upper
    $B mkdir /upper/files /upper/work
    $B mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /root || $B poweroff -f
    $B mount -t tmpfs -o mode=755 tmpfs /root/run
    $B mount -t tmpfs -o mode=1777 tmpfs /root/tmp
    $B mkdir -p /root/run/vm /root/run/lock /root/run/netns /root/lib/modules
    $B cp /bin/busybox /init /command /root/run/vm/
    $B mount -o bind "/root$($B cat /modules)" /root/lib/modules
    for place in proc sys dev; do
        $B mkdir -p "/root/$place"
        $B mount -o move "/$place" "/root/$place"
    done
    exec $B switch_root /root /run/vm/busybox sh /run/vm/init in-root
fi

B=/run/vm/busybox
printf '#!%s sh\nexec %s modprobe "$@"\n' $B $B >/run/vm/modprobe
$B chmod +x /run/vm/modprobe
echo /run/vm/modprobe >/proc/sys/kernel/modprobe
$B mkdir -p /dev/pts /dev/shm
$B mount -t devpts devpts /dev/pts
$B mount -t tmpfs tmpfs /dev/shm
$B mount -t cgroup2 cgroup2 /sys/fs/cgroup
$B ip link set lo up
$B hostname vm
$B modprobe -a br_netfilter ip_vs ip_vs_rr xt_set ip_set_hash_ip sctp
$B stty -F /dev/ttyS1 raw -echo
$B setsid /bin/bash /run/vm/command </dev/null >/dev/ttyS1 2>&1
echo "guest ended with $?" >/dev/ttyS1
$B sleep 0.5
$B poweroff -f
