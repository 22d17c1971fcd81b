# Sourced by the scripts beside it: fills $root with busybox and what every root file system has.
mkdir -p "$root"/{dev,etc,proc,root,sys,tmp,usr/bin,usr/lib,usr/lib64,var/tmp}
chmod 755 "$root"
chmod 1777 "$root/tmp" "$root/var/tmp"
for name in lib lib64; do ln -s "usr/$name" "$root/$name"; done
ln -s usr/bin "$root/bin"
ln -s usr/bin "$root/sbin"
ln -s bin "$root/usr/sbin"
cp /bin/busybox "$root/usr/bin/busybox"
for name in $("$root/usr/bin/busybox" --list); do
    [ "$name" = busybox ] || ln -s busybox "$root/usr/bin/$name"
done
printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'nobody:x:65534:65534:nobody:/:/bin/false' >"$root/etc/passwd"
printf '%s\n' 'root:x:0:' 'nogroup:x:65534:' >"$root/etc/group"
