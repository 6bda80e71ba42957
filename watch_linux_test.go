package litestream

import (
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func newTestWatch(t testing.TB) (w fileWatch, ch chan struct{}) {
	t.Helper()
	ch = make(chan struct{}, 1)
	w = newFileWatch(ch)
	if _, ok := w.(*walWatch); !ok {
		t.Skip("this machine has no inotify instance left")
	}
	t.Cleanup(w.close)
	return w, ch
}

func mustArm(t testing.TB, w fileWatch, path string) {
	t.Helper()
	if err := w.arm(path); err != nil {
		t.Fatal(err)
	}
}

func mustWake(t testing.TB, ch <-chan struct{}, why string) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(30 * time.Second):
		t.Fatalf("no event: %s", why)
	}
}

func appendTo(t testing.TB, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		if _, err = f.Write([]byte("x")); err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// sentinel proves that the reader has delivered every event before now.
func sentinel(t testing.TB) {
	t.Helper()
	w, ch := newTestWatch(t)
	path := filepath.Join(t.TempDir(), "sentinel")
	appendTo(t, path)
	mustArm(t, w, path)
	appendTo(t, path)
	mustWake(t, ch, "sentinel")
}

// An arming yields one event, however many changes come, and none later.
func TestWatchIsOneShot(t *testing.T) {
	w, ch := newTestWatch(t)
	path := filepath.Join(t.TempDir(), "wal")
	if err := w.arm(path); err == nil {
		t.Error("a file that does not exist is watched")
	}
	appendTo(t, path)
	for range 3 {
		mustArm(t, w, path)
		mustArm(t, w, path) // again: still one event
		appendTo(t, path)
		mustWake(t, ch, "write")
		for range 5 {
			appendTo(t, path)
		}
		sentinel(t)
		select {
		case <-ch:
			t.Error("an event without an arming")
		default:
		}
	}
}

// Truncation, unlinking and renaming wake, too, and a new file at the path is
// watched by the next arming.
//
// PITFALLS row 18
func TestWatchFollowsReplacedFile(t *testing.T) {
	w, ch := newTestWatch(t)
	path := filepath.Join(t.TempDir(), "wal")
	for name, change := range map[string]func() error{
		"truncate": func() error { return os.Truncate(path, 0) },
		"remove":   func() error { return os.Remove(path) },
		"rename":   func() error { return os.Rename(path, path+"-old") },
		"replace": func() error {
			appendTo(t, path+"-new")
			return os.Rename(path+"-new", path)
		},
	} {
		appendTo(t, path)
		mustArm(t, w, path)
		if err := change(); err != nil {
			t.Fatal(err)
		}
		mustWake(t, ch, name)
	}
	// Replaced while armed, without an event delivered in between.
	appendTo(t, path)
	mustArm(t, w, path)
	kept, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	if err := os.Rename(path, path+"-kept"); err != nil {
		t.Fatal(err)
	}
	mustWake(t, ch, "rename")
	appendTo(t, path)
	mustArm(t, w, path)
	appendTo(t, path)
	mustWake(t, ch, "write to the new file")
}

// The last close joins the reader, and a watch can begin again. A closed watch
// cannot be armed, and may be closed twice.
func TestWatchCloseJoins(t *testing.T) {
	path := filepath.Join(t.TempDir(), "wal")
	appendTo(t, path)
	for range 20 {
		a, ach := newTestWatch(t)
		b, bch := newTestWatch(t)
		inotify.Lock()
		done, users := inotify.done, inotify.users
		inotify.Unlock()
		mustArm(t, a, path)
		a.close()
		a.close()
		if a.arm(path) == nil {
			t.Error("a closed watch is armed")
		}
		mustArm(t, b, path)
		appendTo(t, path)
		mustWake(t, bch, "write")
		select {
		case <-ach:
			t.Error("a closed watch wakes")
		default:
		}
		b.close()
		select {
		case <-done:
		default:
			if users == 2 {
				t.Fatal("the reader goes on after the last close")
			}
		}
	}
}

// Events that the kernel dropped wake every watch.
//
// PITFALLS row 32
func TestWatchOverflowWakesAll(t *testing.T) {
	dir := t.TempDir()
	var chs []chan struct{}
	for _, name := range []string{"a", "b"} {
		w, ch := newTestWatch(t)
		appendTo(t, filepath.Join(dir, name))
		mustArm(t, w, filepath.Join(dir, name))
		chs = append(chs, ch)
	}
	deliverInotify(-1, 0x4000) // IN_Q_OVERFLOW
	for _, ch := range chs {
		mustWake(t, ch, "overflow")
	}
}

// A reader that arms before it looks misses no write: what it does not see
// wakes it again. Watches come and go meanwhile.
func TestWatchLosesNoWrite(t *testing.T) {
	const writes = 300
	dir := t.TempDir()
	var wg sync.WaitGroup
	var stop atomic.Bool
	wg.Go(func() {
		for !stop.Load() {
			newFileWatch(make(chan struct{}, 1)).close()
		}
	})
	var pairs sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		path := filepath.Join(dir, name)
		appendTo(t, path)
		w, ch := newTestWatch(t)
		pairs.Go(func() {
			for range writes {
				appendTo(t, path)
			}
		})
		pairs.Go(func() {
			for {
				if err := w.arm(path); err != nil {
					t.Error(err)
					return
				}
				info, err := os.Stat(path)
				if err != nil || info.Size() == writes+1 {
					if err != nil {
						t.Error(err)
					}
					return
				}
				select {
				case <-ch:
				case <-time.After(30 * time.Second):
					t.Errorf("%s: no event, but %d bytes are not all", path, info.Size())
					return
				}
			}
		})
	}
	pairs.Wait()
	stop.Store(true)
	wg.Wait()
}

// BenchmarkWatch measures an arming and the event that it yields.
func BenchmarkWatch(b *testing.B) {
	w, ch := newTestWatch(b)
	path := filepath.Join(b.TempDir(), "wal")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.ReportAllocs()
	for b.Loop() {
		if err := w.arm(path); err != nil {
			b.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("x"), 0); err != nil {
			b.Fatal(err)
		}
		<-ch
	}
}

// Should events no longer be read, everyone is woken and polls from then on. The
// next first watch begins anew.
func TestWatchWhoseReaderEndsIsNone(t *testing.T) {
	w, ch := newTestWatch(t)
	path := filepath.Join(t.TempDir(), "wal")
	appendTo(t, path)
	mustArm(t, w, path)
	inotify.Lock()
	err := inotify.f.SetReadDeadline(time.Now())
	inotify.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	mustWake(t, ch, "the reader ended")
	if err := w.arm(path); err == nil {
		t.Error("a file is watched, but nobody reads the events")
	}
	w.close()

	again, ch := newTestWatch(t)
	mustArm(t, again, path)
	appendTo(t, path)
	mustWake(t, ch, "write")
}
