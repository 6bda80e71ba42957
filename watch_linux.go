package litestream

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"syscall"
)

// inotify is the process's one inotify instance. It exists while a watch does.
// See inotify(7).
var inotify struct {
	sync.Mutex
	f       *os.File // non-blocking: the runtime's poller waits on it
	users   int
	watches map[int32]*walWatch // by watch descriptor, while armed
	done    chan struct{}       // closed when the reader has ended
	deaf    bool                // it ended without being told to: no event comes any more
}

// walWatch is one DB's watch. Every arming is a one-shot: the kernel removes
// the watch with its first event.
type walWatch struct {
	ch   chan<- struct{}
	wd   int32 // guarded by inotify; valid while armed
	held bool  // counted in inotify.users
}

func newFileWatch(ch chan<- struct{}) fileWatch {
	w := &walWatch{ch: ch}
	inotify.Lock()
	defer inotify.Unlock()
	if inotify.users == 0 && startInotify() != nil {
		return noWatch{}
	}
	inotify.users++
	w.held = true
	return w
}

// startInotify opens the instance and starts its reader, which the last close
// joins. inotify is locked.
func startInotify() error {
	fd, err := syscall.InotifyInit1(syscall.IN_NONBLOCK | syscall.IN_CLOEXEC)
	if err != nil {
		return err
	}
	inotify.f = os.NewFile(uintptr(fd), "inotify")
	inotify.watches = make(map[int32]*walWatch)
	inotify.done = make(chan struct{})
	inotify.deaf = false
	go readInotify(inotify.f, inotify.done)
	return nil
}

// readInotify wakes the DB of each event until f is closed.
func readInotify(f *os.File, done chan<- struct{}) {
	defer close(done)
	defer endInotify(f)
	buf := make([]byte, 64*syscall.SizeofInotifyEvent)
	for {
		n, err := f.Read(buf)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		for b := buf[:n]; len(b) >= syscall.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(b))
			mask := binary.NativeEndian.Uint32(b[4:])
			size := syscall.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
			b = b[min(size, len(b)):]
			deliverInotify(wd, mask)
		}
	}
}

// endInotify makes everyone poll if f, which can no longer be read, is in use.
func endInotify(f *os.File) {
	inotify.Lock()
	defer inotify.Unlock()
	if inotify.f != f || inotify.users == 0 {
		return
	}
	inotify.deaf = true
	for _, w := range inotify.watches {
		wake(w.ch)
	}
}

func deliverInotify(wd int32, mask uint32) {
	inotify.Lock()
	defer inotify.Unlock()
	if mask&syscall.IN_Q_OVERFLOW != 0 { // events were lost: everyone looks
		for _, w := range inotify.watches {
			wake(w.ch)
		}
		return
	}
	if w := inotify.watches[wd]; w != nil {
		delete(inotify.watches, wd)
		w.wd = 0
		wake(w.ch)
	}
}

// arm implements fileWatch. Writes and an unlink wake the DB.
func (w *walWatch) arm(path string) error {
	const mask = syscall.IN_MODIFY | syscall.IN_ATTRIB | syscall.IN_MOVE_SELF |
		syscall.IN_DELETE_SELF | syscall.IN_ONESHOT
	inotify.Lock()
	defer inotify.Unlock()
	if !w.held || inotify.deaf {
		return errNoWatch
	}
	conn, err := inotify.f.SyscallConn()
	if err != nil {
		return err
	}
	var wd int
	var werr error
	if err := conn.Control(func(fd uintptr) { wd, werr = syscall.InotifyAddWatch(int(fd), path, mask) }); err != nil {
		return err
	}
	if werr != nil {
		return werr
	}
	if w.wd != 0 && w.wd != int32(wd) {
		delete(inotify.watches, w.wd) // the WAL is another file now
	}
	w.wd = int32(wd)
	inotify.watches[w.wd] = w
	return nil
}

// close implements fileWatch. The last one ends the reader and joins it.
func (w *walWatch) close() {
	inotify.Lock()
	if !w.held {
		inotify.Unlock()
		return
	}
	w.held = false
	if w.wd != 0 {
		delete(inotify.watches, w.wd)
		if conn, err := inotify.f.SyscallConn(); err == nil {
			// The kernel may have removed it already.
			_ = conn.Control(func(fd uintptr) { _, _ = syscall.InotifyRmWatch(int(fd), uint32(w.wd)) })
		}
	}
	inotify.users--
	var done chan struct{}
	if inotify.users == 0 {
		done = inotify.done
		_ = inotify.f.Close() // nothing was written to it
	}
	inotify.Unlock()
	if done != nil {
		<-done
	}
}
