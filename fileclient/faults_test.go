package fileclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/internal/durable"
	"example.com/litestream/internal/faultfs"
)

// checkWhole fails if a fresh client sees anything but whole bodies, or a
// listing that its readers do not confirm.
func checkWhole(t *testing.T, what, path string, bodies ...string) {
	t.Helper()
	c := NewFileReplicaClient(path)
	check := func(name string, size int64, rc io.ReadCloser, err error) {
		t.Helper()
		if body := readAll(t, rc, err); !slices.Contains(bodies, body) || size != int64(len(body)) {
			t.Errorf("%s: %s holds %d bytes, listed as %d", what, name, len(body), size)
		}
	}
	for _, info := range listSnapshots(t, c) {
		rc, err := c.SnapshotReader(t.Context(), gen, info.Index)
		check("snapshot", info.Size, rc, err)
	}
	for _, info := range listSegments(t, c) {
		rc, err := c.WALSegmentReader(t.Context(), info.Pos())
		check("segment", info.Size, rc, err)
	}
	for _, name := range tree(t, c) {
		if strings.HasSuffix(name, ".tmp") {
			t.Errorf("%s: left %s", what, name)
		}
	}
}

// names tracks which names of files and directories a power loss could take.
type names struct {
	mu      sync.Mutex
	pending map[string]bool
}

func (n *names) observe(op faultfs.Op) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch op.Name {
	case faultfs.Mkdir, faultfs.Rename:
		n.pending[op.Path] = true
	case faultfs.Remove:
		delete(n.pending, op.Path)
	case faultfs.SyncDir:
		for name := range n.pending {
			if filepath.Dir(name) == op.Path {
				delete(n.pending, name)
			}
		}
	}
}

// lost returns the names on the way to name that a power loss could take.
func (n *names) lost(name string) (lost []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for ; filepath.Dir(name) != name; name = filepath.Dir(name) {
		if n.pending[name] {
			lost = append(lost, name)
		}
	}
	return lost
}

// PITFALLS rows 20 and 36
func TestWriteFaultIsReportedAndRetryIsDurable(t *testing.T) {
	const old, body = "old", "new body"
	for _, write := range []struct {
		name string
		call func(context.Context, *FileReplicaClient, string) error
		path string
	}{
		{"snapshot", func(ctx context.Context, c *FileReplicaClient, body string) error {
			_, err := c.WriteSnapshot(ctx, gen, 1, strings.NewReader(body))
			return err
		}, "snapshots/0000000000000001.snapshot.lz4"},
		{"segment", func(ctx context.Context, c *FileReplicaClient, body string) error {
			_, err := c.WriteWALSegment(ctx, pos(1, 0), strings.NewReader(body))
			return err
		}, "wal/0000000000000001/0000000000000000.wal.lz4"},
	} {
		for _, kind := range []error{faultfs.EIO, faultfs.ENOSPC, faultfs.ShortWrite} {
			for _, replace := range []bool{false, true} {
				for _, sameClient := range []bool{false, true} {
					faults := 0
					for n := 1; ; n++ {
						c := newClient(t)
						if replace {
							if err := write.call(t.Context(), c, old); err != nil {
								t.Fatal(err)
							}
						}
						if !sameClient {
							c = NewFileReplicaClient(c.path)
						}
						f := faulty(c)
						durable := names{pending: map[string]bool{}}
						fired := faultfs.Op{}
						f.SetHook(func(op faultfs.Op) error {
							if op.N == n {
								fired = op
								return kind
							}
							durable.observe(op)
							return nil
						})
						err := write.call(t.Context(), c, body)
						if fired.N == 0 {
							if err != nil {
								t.Errorf("%s without fault: %v", write.name, err)
							}
							break
						}
						faults++
						what := fmt.Sprintf("%s, %v at %s %s", write.name, kind, fired.Name, fired.Path)
						if !errors.Is(err, kind) {
							t.Errorf("%s: reported as %v", what, err)
						}
						checkWhole(t, what, c.path, old, body)

						// The retry, by this client or by the next process.
						if !sameClient {
							c = NewFileReplicaClient(c.path)
							c.fs = f
						}
						if err := write.call(t.Context(), c, body); err != nil {
							t.Errorf("%s: retry: %v", what, err)
						}
						checkWhole(t, what+", retried", c.path, body)
						name := filepath.Join(c.path, "generations", gen, filepath.FromSlash(write.path))
						if lost := durable.lost(name); len(lost) > 0 {
							t.Errorf("%s: not durable after the retry: %q", what, lost)
						}
						if got := len(listSnapshots(t, c)) + len(listSegments(t, c)); got != 1 {
							t.Errorf("%s: %d files after the retry", what, got)
						}
					}
					if faults < 7 {
						t.Errorf("%s: only %d faults", write.name, faults)
					}
				}
			}
		}
	}
}

func TestDeleteFaultIsReportedAndRetryDeletes(t *testing.T) {
	const body = "body"
	segments := []litestream.Pos{pos(1, 0), pos(1, 4152), pos(2, 0)}
	for _, del := range []struct {
		name string
		call func(context.Context, *FileReplicaClient) error
		left []string
	}{
		{"snapshot", func(ctx context.Context, c *FileReplicaClient) error {
			return c.DeleteSnapshot(ctx, gen, 1)
		}, []string{"1/0", "1/1038", "2/0", "2/1038"}},
		{"segments", func(ctx context.Context, c *FileReplicaClient) error {
			return c.DeleteWALSegments(ctx, segments)
		}, []string{"s1", "2/1038"}},
		{"generation", func(ctx context.Context, c *FileReplicaClient) error {
			return c.DeleteGeneration(ctx, gen)
		}, nil},
	} {
		for n := 1; ; n++ {
			c := newClient(t)
			writeSnapshot(t, c, gen, 1, body)
			for _, p := range append(segments, pos(2, 4152)) {
				writeSegment(t, c, p, body)
			}
			f := faulty(c)
			f.FailAt(n, faultfs.EIO)
			err := del.call(t.Context(), c)
			fault, fired := f.Fault()
			what := fmt.Sprintf("delete %s, fault at %s %s", del.name, fault.Name, fault.Path)
			// The removal of an empty directory is tried again.
			overcome := fault.Name == faultfs.Remove && err == nil
			if fired && !overcome && !errors.Is(err, faultfs.EIO) {
				t.Errorf("%s: reported as %v", what, err)
			}
			checkWhole(t, what, c.path, body)
			f.Reset()
			if del.name == "generation" && len(listSnapshots(t, c)) > 0 && len(listSegments(t, c)) < 4 {
				t.Errorf("%s: half deleted, but the snapshot is still there", what)
			}
			if err := del.call(t.Context(), c); err != nil {
				t.Errorf("%s: retry: %v", what, err)
			}
			var left []string
			for _, info := range listSnapshots(t, c) {
				left = append(left, fmt.Sprintf("s%x", info.Index))
			}
			for _, info := range listSegments(t, c) {
				left = append(left, fmt.Sprintf("%x/%x", info.Index, info.Offset))
			}
			if !slices.Equal(left, del.left) {
				t.Errorf("%s: left %q, want %q", what, left, del.left)
			}
			for _, name := range tree(t, c) {
				if strings.HasSuffix(name, "/0000000000000001") {
					t.Errorf("%s: empty directory %s", what, name)
				}
			}
			if !fired {
				break
			}
		}
	}
}

// PITFALLS row 10
func TestListingFaultIsReported(t *testing.T) {
	c := newClient(t)
	writeSnapshot(t, c, gen, 1, "s")
	writeSegment(t, c, pos(1, 0), "w")
	for name, call := range map[string]func() error{
		"generations": func() error { _, err := c.Generations(t.Context()); return err },
		"snapshots":   func() error { _, err := c.Snapshots(t.Context(), gen); return err },
		"segments":    func() error { _, err := c.WALSegments(t.Context(), gen); return err },

		"snapshots, relied on": func() error { _, err := c.Snapshots(durable.Listing(t.Context()), gen); return err },
		"segments, relied on":  func() error { _, err := c.WALSegments(durable.Listing(t.Context()), gen); return err },
	} {
		for n := 1; ; n++ {
			f := faulty(c)
			f.FailAt(n, faultfs.EIO)
			err := call()
			if op, ok := f.Fault(); ok != errors.Is(err, faultfs.EIO) {
				t.Errorf("%s, fault at %s %s: %v", name, op.Name, op.Path, err)
			} else if !ok {
				break
			}
		}
	}
}

// A writer may be killed between the rename and the sync of the directory. Who
// relies on what is listed then makes it durable; who only reads does not.
func TestListingThatIsReliedOnIsDurable(t *testing.T) {
	c := newClient(t)
	writeSnapshot(t, c, gen, 1, "s")
	writeSegment(t, c, pos(1, 0), "w")
	writeSegment(t, c, pos(2, 0), "w")
	f := faulty(c)
	var synced []string
	f.SetHook(func(op faultfs.Op) error {
		if op.Name == faultfs.SyncDir {
			rel, err := filepath.Rel(c.path, op.Path)
			synced = append(synced, filepath.ToSlash(rel))
			return err
		}
		return nil
	})
	list := func(ctx context.Context, want ...string) {
		t.Helper()
		synced = nil
		_, err := c.Snapshots(ctx, gen)
		_, err2 := c.WALSegments(ctx, gen)
		if err := errors.Join(err, err2); err != nil || !slices.Equal(synced, want) {
			t.Errorf("synced %q, want %q; error %v", synced, want, err)
		}
	}
	list(t.Context())
	dir := "generations/" + gen
	list(durable.Listing(t.Context()), dir+"/snapshots", dir+"/wal/"+litestream.FormatIndex(2))
	if err := c.DeleteGeneration(t.Context(), gen); err != nil {
		t.Fatal(err)
	}
	list(durable.Listing(t.Context()))
}

func TestWriterSurvivesRemovalOfItsDirectory(t *testing.T) {
	for _, remove := range []string{"index", "generation", "replica"} {
		c := newClient(t)
		writeSegment(t, c, pos(1, 0), "old")
		f := faulty(c)
		var once sync.Once
		f.SetHook(func(op faultfs.Op) error {
			if op.Name == faultfs.Create {
				once.Do(func() {
					other := NewFileReplicaClient(c.path)
					var err error
					switch remove {
					case "index":
						err = other.DeleteWALSegments(t.Context(), []litestream.Pos{pos(1, 0)})
					case "generation":
						err = other.DeleteGeneration(t.Context(), gen)
					case "replica":
						err = os.RemoveAll(c.path)
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
			return nil
		})
		writeSegment(t, c, pos(1, 4152), "new")
		if got := listSegments(t, c); len(got) != 1 || got[0].Offset != 4152 {
			t.Errorf("%s removed: segments %v", remove, got)
		}
		checkWhole(t, remove, c.path, "new")
	}
}

// The writer opens its file in a directory that another one makes again and
// fails to make durable.
func TestWriterMakesDirectoryOfFailedWriterDurable(t *testing.T) {
	c := newClient(t)
	writeSegment(t, c, pos(1, 0), "old")
	name, _ := c.WALSegmentPath(gen, 1, 1)
	dir := filepath.Dir(name)
	f := faulty(c)
	durable := names{pending: map[string]bool{}}
	opening, open := make(chan struct{}), make(chan struct{})
	written := make(chan struct{})
	var once, failOnce sync.Once
	f.SetHook(func(op faultfs.Op) (err error) {
		switch {
		case op.Name == faultfs.Create && strings.HasPrefix(op.Path, name):
			once.Do(func() { close(opening); <-open })
		case op.Name == faultfs.SyncDir && op.Path == dir:
			defer close(written)
		case op.Name == faultfs.SyncDir && op.Path == filepath.Dir(dir):
			failOnce.Do(func() {
				close(open)
				<-written
				err = faultfs.EIO
			})
		}
		if err == nil {
			durable.observe(op)
		}
		return err
	})
	done := make(chan error, 1)
	go func() {
		_, err := c.WriteWALSegment(context.Background(), pos(1, 1), strings.NewReader("new"))
		done <- err
	}()
	<-opening
	if err := os.RemoveAll(dir); err != nil { // as if it had been empty
		t.Error(err)
	}
	if _, err := c.WriteWALSegment(t.Context(), pos(1, 2), strings.NewReader("new")); !errors.Is(err, faultfs.EIO) {
		t.Errorf("second writer: %v", err)
	}
	if err := <-done; err != nil {
		t.Errorf("first writer: %v", err)
	}
	if lost := durable.lost(name); len(lost) > 0 {
		t.Errorf("returned before durable: %q", lost)
	}
}

// A power loss must not bring back a snapshot whose segments are gone.
func TestDeletesAreDurableInTheirOrder(t *testing.T) {
	c := newClient(t)
	for index := range 3 {
		writeSnapshot(t, c, gen, index, "s")
		writeSegment(t, c, pos(index, 0), "w")
		writeSegment(t, c, pos(index, 1), "w")
	}
	snapshots, _ := c.SnapshotsDir(gen)
	wal, _ := c.WALDir(gen)
	f := faulty(c)
	removed := map[string]bool{} // but not durably
	f.SetHook(func(op faultfs.Op) error {
		switch op.Name {
		case faultfs.Remove:
			if ents, err := os.ReadDir(op.Path); err == nil && len(ents) > 0 {
				return nil // will fail
			}
			if strings.HasPrefix(op.Path, wal) && removed[snapshots] {
				t.Errorf("removes %s while %s may come back", op.Path, snapshots)
			}
			for name := range removed {
				if filepath.Dir(name) == op.Path {
					delete(removed, name)
				}
			}
			removed[op.Path] = true
		case faultfs.SyncDir:
			for name := range removed {
				if filepath.Dir(name) == op.Path {
					delete(removed, name)
				}
			}
		}
		return nil
	})
	for _, del := range []struct {
		name string
		call func() error
	}{
		{"snapshot", func() error { return c.DeleteSnapshot(t.Context(), gen, 0) }},
		{"segment", func() error { return c.DeleteWALSegments(t.Context(), []litestream.Pos{pos(1, 0)}) }},
		{"index", func() error { return c.DeleteWALSegments(t.Context(), []litestream.Pos{pos(0, 0), pos(0, 1)}) }},
		{"generation", func() error { return c.DeleteGeneration(t.Context(), gen) }},
	} {
		if err := del.call(); err != nil || len(removed) > 0 {
			t.Errorf("delete %s: %v, may come back: %v", del.name, err, removed)
		}
	}
	c.dirs.durable.Range(func(dir, _ any) bool {
		if strings.HasPrefix(dir.(string), filepath.Dir(wal)) {
			t.Errorf("client still remembers %s", dir)
		}
		return true
	})
}

// The last file of a directory goes between the attempt to remove the
// directory and the look at what keeps it.
func TestDirectoryEmptiedWhileItIsRemoved(t *testing.T) {
	c := newClient(t)
	writeSegment(t, c, pos(1, 0), "x")
	busy := put(t, c, "wal/0000000000000001/busy", "")
	f := faulty(c)
	tried := false
	f.SetHook(func(op faultfs.Op) error {
		switch {
		case op.Name == faultfs.Remove && op.Path == filepath.Dir(busy):
			tried = true
		case op.Name == faultfs.ReadDir && tried:
			if err := os.Remove(busy); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	if err := c.DeleteWALSegments(t.Context(), []litestream.Pos{pos(1, 0)}); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Dir(busy)); !tried || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("tried %v, directory: %v", tried, err)
	}
}

// Writers of one index, of its snapshot and a deleter make and remove the same
// directories all the time. No write may return before all names on the way to
// its file are durable, whoever made them.
func TestConcurrentWritesAndDeletesStayDurable(t *testing.T) {
	for round := range 30 {
		c := newClient(t)
		f := faulty(c)
		durable := names{pending: map[string]bool{}}
		f.SetHook(func(op faultfs.Op) error { durable.observe(op); return nil })
		check := func(name string, err error) {
			if err != nil {
				t.Error(err)
			} else if lost := durable.lost(name); len(lost) > 0 {
				t.Errorf("round %d: returned before durable: %q", round, lost)
			}
		}
		var wg sync.WaitGroup
		for worker := range 3 {
			wg.Go(func() {
				for i := range 10 {
					p := pos(1, int64(worker*100+i))
					name, _ := c.WALSegmentPath(gen, p.Index, p.Offset)
					_, err := c.WriteWALSegment(t.Context(), p, strings.NewReader("x"))
					check(name, err)
					if err := c.DeleteWALSegments(t.Context(), []litestream.Pos{p}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Go(func() {
			name, _ := c.SnapshotPath(gen, 1)
			_, err := c.WriteSnapshot(t.Context(), gen, 1, strings.NewReader("x"))
			check(name, err)
		})
		wg.Wait()
		want := []string{"generations/" + gen + "/snapshots/0000000000000001.snapshot.lz4", "generations/" + gen + "/wal"}
		if got := tree(t, c); !slices.Equal(got, want) {
			t.Errorf("round %d: left %q", round, got)
		}
	}
}

// PITFALLS row 20
func TestFilesOfCrashedProcessAreSwept(t *testing.T) {
	c := newClient(t)
	writeSegment(t, c, pos(1, 0), "x")
	writeSnapshot(t, c, gen, 1, "x")
	old := time.Now().Add(-time.Hour)
	var stale, recent []string
	for _, name := range []string{"snapshots/0000000000000001.snapshot.lz4", "wal/0000000000000001/0000000000000000.wal.lz4"} {
		stale = append(stale, put(t, c, name+".crashed-1.tmp", "half"))
		recent = append(recent, put(t, c, name+".other-1.tmp", "half"))
	}
	for _, name := range stale {
		if err := os.Chtimes(name, old, old); err != nil {
			t.Fatal(err)
		}
	}
	exist := func(name string) bool { _, err := os.Lstat(name); return err == nil }

	c = NewFileReplicaClient(c.path)
	writeSegment(t, c, pos(1, 4152), "x")
	writeSnapshot(t, c, gen, 2, "x")
	for i := range stale {
		if exist(stale[i]) || !exist(recent[i]) {
			t.Errorf("first write: abandoned file exists: %v, recent file: %v", exist(stale[i]), exist(recent[i]))
		}
	}
	if err := c.DeleteWALSegments(t.Context(), []litestream.Pos{pos(1, 0), pos(1, 4152)}); err != nil {
		t.Error(err)
	}
	if exist(filepath.Dir(recent[1])) {
		t.Errorf("the unfinished file of another process keeps the directory: %q", tree(t, c))
	}
}

// A segment being written keeps its directory when all others are deleted.
func TestDeleteSparesSegmentBeingWritten(t *testing.T) {
	c := newClient(t)
	writeSegment(t, c, pos(1, 0), "old")
	read := false
	_, err := c.WriteWALSegment(t.Context(), pos(1, 4152), funcReader(func(p []byte) (int, error) {
		if read {
			return 0, io.EOF
		}
		read = true
		return copy(p, "new"), c.DeleteWALSegments(t.Context(), []litestream.Pos{pos(1, 0)})
	}))
	if err != nil {
		t.Fatal(err)
	}
	if got := listSegments(t, NewFileReplicaClient(c.path)); len(got) != 1 || got[0].Offset != 4152 || got[0].Size != 3 {
		t.Errorf("segments %v", got)
	}
}
