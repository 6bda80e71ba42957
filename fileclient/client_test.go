package fileclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
)

const (
	gen  = "0123456789abcdef"
	gen2 = "00000000ffffffff"
)

// newClient returns a client of a directory that does not exist yet.
func newClient(t testing.TB) *FileReplicaClient {
	return NewFileReplicaClient(filepath.Join(t.TempDir(), "a", "replica"))
}

// faulty gives c a file system that a test makes fail.
func faulty(c *FileReplicaClient) *faultfs.FS {
	f := faultfs.New(fsys.OS)
	c.fs = f
	return f
}

func pos(index int, offset int64) litestream.Pos {
	return litestream.Pos{Generation: gen, Index: index, Offset: offset}
}

func writeSegment(t testing.TB, c *FileReplicaClient, pos litestream.Pos, body string) litestream.WALSegmentInfo {
	t.Helper()
	info, err := c.WriteWALSegment(t.Context(), pos, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func writeSnapshot(t testing.TB, c *FileReplicaClient, generation string, index int, body string) litestream.SnapshotInfo {
	t.Helper()
	info, err := c.WriteSnapshot(t.Context(), generation, index, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func readAll(t testing.TB, rc io.ReadCloser, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(rc)
	if err = errors.Join(err, rc.Close()); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// tree returns the paths of all files and empty directories below the parent
// of c's path.
func tree(t testing.TB, c *FileReplicaClient) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(c.path, func(path string, ent fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if ent.IsDir() {
			if ents, err := os.ReadDir(path); err != nil || len(ents) > 0 {
				return err
			}
		}
		rel, err := filepath.Rel(c.path, path)
		names = append(names, filepath.ToSlash(rel))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// put creates a file below c's path as another program would.
func put(t testing.TB, c *FileReplicaClient, name, body string) string {
	t.Helper()
	name = filepath.Join(c.path, "generations", gen, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// listSnapshots and listSegments list in the order of the iterators.
func listSnapshots(t testing.TB, c *FileReplicaClient) (infos []litestream.SnapshotInfo) {
	t.Helper()
	itr, err := c.Snapshots(t.Context(), gen)
	if err != nil {
		t.Fatal(err)
	}
	for itr.Next() {
		infos = append(infos, itr.Snapshot())
	}
	if err := errors.Join(itr.Err(), itr.Close()); err != nil {
		t.Fatal(err)
	}
	return infos
}

func listSegments(t testing.TB, c *FileReplicaClient) (infos []litestream.WALSegmentInfo) {
	t.Helper()
	itr, err := c.WALSegments(t.Context(), gen)
	if err != nil {
		t.Fatal(err)
	}
	for itr.Next() {
		infos = append(infos, itr.WALSegment())
	}
	if err := errors.Join(itr.Err(), itr.Close()); err != nil {
		t.Fatal(err)
	}
	return infos
}

func TestFilesLieWhereV04ExpectsThem(t *testing.T) {
	c := newClient(t)
	if c.Type() != "file" || c.FileMode != 0o600 || c.DirMode != 0o700 || c.Uid != -1 || c.Gid != -1 {
		t.Errorf("defaults: %s %v %v %d %d", c.Type(), c.FileMode, c.DirMode, c.Uid, c.Gid)
	}
	writeSnapshot(t, c, gen, 0x1f, "s")
	writeSegment(t, c, pos(0x1f, 0x1038), "w")
	want := []string{
		"generations/0123456789abcdef/snapshots/000000000000001f.snapshot.lz4",
		"generations/0123456789abcdef/wal/000000000000001f/0000000000001038.wal.lz4",
	}
	if got := tree(t, c); !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
	for i, path := range []func() (string, error){
		func() (string, error) { return c.SnapshotPath(gen, 0x1f) },
		func() (string, error) { return c.WALSegmentPath(gen, 0x1f, 0x1038) },
	} {
		if got, err := path(); err != nil || got != filepath.Join(c.Path(), filepath.FromSlash(want[i])) {
			t.Errorf("path %q, %v", got, err)
		}
	}
}

func TestWriteListReadDelete(t *testing.T) {
	c := newClient(t)
	segments := []litestream.WALSegmentInfo{
		writeSegment(t, c, pos(10, 0), "ten"),
		writeSegment(t, c, pos(2, 4152), ""),
		writeSegment(t, c, pos(2, 0), "two"),
		writeSegment(t, c, litestream.Pos{Generation: gen2}, "other generation"),
	}
	snapshots := []litestream.SnapshotInfo{
		writeSnapshot(t, c, gen, 10, "snapshot ten"),
		writeSnapshot(t, c, gen, 2, "snapshot two"),
	}
	fresh := NewFileReplicaClient(c.Path())
	if got, err := fresh.Generations(t.Context()); err != nil || !slices.Equal(got, []string{gen2, gen}) {
		t.Errorf("generations %q, %v", got, err)
	}
	if got, want := listSegments(t, fresh), []litestream.WALSegmentInfo{segments[2], segments[1], segments[0]}; !slices.Equal(got, want) {
		t.Errorf("segments %v, want %v", got, want)
	}
	if got, want := listSnapshots(t, fresh), []litestream.SnapshotInfo{snapshots[1], snapshots[0]}; !slices.Equal(got, want) {
		t.Errorf("snapshots %v, want %v", got, want)
	}
	if segments[0].Size != 3 || segments[1].Size != 0 || snapshots[0].Size != 12 {
		t.Errorf("sizes %d %d %d", segments[0].Size, segments[1].Size, snapshots[0].Size)
	}
	name, _ := c.SnapshotPath(gen, 10)
	mtime := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	if err := os.Chtimes(name, mtime, mtime); err != nil {
		t.Fatal(err)
	}
	if got := listSnapshots(t, fresh)[1].CreatedAt; got != mtime {
		t.Errorf("created at %s, want the modification time %s", got, mtime)
	}

	writeSegment(t, fresh, pos(2, 0), "replaced")
	rc, err := c.WALSegmentReader(t.Context(), pos(2, 0))
	if got := readAll(t, rc, err); got != "replaced" {
		t.Errorf("segment %q", got)
	}
	rc, err = c.SnapshotReader(t.Context(), gen, 2)
	if got := readAll(t, rc, err); got != "snapshot two" {
		t.Errorf("snapshot %q", got)
	}

	if err := c.DeleteSnapshot(t.Context(), gen, 2); err != nil {
		t.Error(err)
	}
	if err := c.DeleteWALSegments(t.Context(), []litestream.Pos{pos(2, 0), pos(10, 0)}); err != nil {
		t.Error(err)
	}
	want := []string{
		"generations/00000000ffffffff/wal/0000000000000000/0000000000000000.wal.lz4",
		"generations/0123456789abcdef/snapshots/000000000000000a.snapshot.lz4",
		"generations/0123456789abcdef/wal/0000000000000002/0000000000001038.wal.lz4",
	}
	if got := tree(t, c); !slices.Equal(got, want) {
		t.Errorf("after deletes: %q, want %q", got, want)
	}
	if err := c.DeleteGeneration(t.Context(), gen); err != nil {
		t.Error(err)
	}
	if got := tree(t, c); !slices.Equal(got, want[:1]) {
		t.Errorf("after deleting the generation: %q", got)
	}
	writeSegment(t, c, pos(2, 0), "again") // into directories that are gone
	if got := listSegments(t, c); len(got) != 1 {
		t.Errorf("segments %v", got)
	}
}

func TestWhatDoesNotExistIsEmptyOrErrNotExist(t *testing.T) {
	for _, made := range []bool{false, true} {
		c := newClient(t)
		if made {
			put(t, c, "wal/0000000000000005/x", "")
			put(t, c, "snapshots/x", "")
		}
		if got, err := c.Generations(t.Context()); err != nil || (len(got) > 0) != made {
			t.Errorf("generations %q, %v", got, err)
		}
		if a, b := listSegments(t, c), listSnapshots(t, c); len(a)+len(b) > 0 {
			t.Errorf("listed %v, %v", a, b)
		}
		if _, err := c.SnapshotReader(t.Context(), gen, 0); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("snapshot reader: %v", err)
		}
		if _, err := c.WALSegmentReader(t.Context(), pos(0, 0)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("segment reader: %v", err)
		}
		for name, err := range map[string]error{
			"snapshot":    c.DeleteSnapshot(t.Context(), gen, 0),
			"segments":    c.DeleteWALSegments(t.Context(), []litestream.Pos{pos(0, 0)}),
			"no segments": c.DeleteWALSegments(t.Context(), nil),
			"generation":  c.DeleteGeneration(t.Context(), gen2),
		} {
			if err != nil {
				t.Errorf("delete %s: %v", name, err)
			}
		}
	}
}

// calls are all methods that take a position.
var calls = []struct {
	name string
	call func(context.Context, *FileReplicaClient, litestream.Pos) error
	uses string // of the position: g, i and o
}{
	{"GenerationDir", func(_ context.Context, c *FileReplicaClient, p litestream.Pos) error {
		_, err := c.GenerationDir(p.Generation)
		return err
	}, "g"},
	{"SnapshotsDir", func(_ context.Context, c *FileReplicaClient, p litestream.Pos) error {
		_, err := c.SnapshotsDir(p.Generation)
		return err
	}, "g"},
	{"WALDir", func(_ context.Context, c *FileReplicaClient, p litestream.Pos) error {
		_, err := c.WALDir(p.Generation)
		return err
	}, "g"},
	{"SnapshotPath", func(_ context.Context, c *FileReplicaClient, p litestream.Pos) error {
		_, err := c.SnapshotPath(p.Generation, p.Index)
		return err
	}, "gi"},
	{"WALSegmentPath", func(_ context.Context, c *FileReplicaClient, p litestream.Pos) error {
		_, err := c.WALSegmentPath(p.Generation, p.Index, p.Offset)
		return err
	}, "gio"},
	{"Snapshots", func(ctx context.Context, c *FileReplicaClient, p litestream.Pos) error {
		_, err := c.Snapshots(ctx, p.Generation)
		return err
	}, "g"},
	{"WALSegments", func(ctx context.Context, c *FileReplicaClient, p litestream.Pos) error {
		_, err := c.WALSegments(ctx, p.Generation)
		return err
	}, "g"},
	{"WriteSnapshot", func(ctx context.Context, c *FileReplicaClient, p litestream.Pos) error {
		_, err := c.WriteSnapshot(ctx, p.Generation, p.Index, strings.NewReader("x"))
		return err
	}, "gi"},
	{"WriteWALSegment", func(ctx context.Context, c *FileReplicaClient, p litestream.Pos) error {
		_, err := c.WriteWALSegment(ctx, p, strings.NewReader("x"))
		return err
	}, "gio"},
	{"SnapshotReader", func(ctx context.Context, c *FileReplicaClient, p litestream.Pos) error {
		rc, err := c.SnapshotReader(ctx, p.Generation, p.Index)
		if err == nil {
			err = rc.Close()
		}
		return err
	}, "gi"},
	{"WALSegmentReader", func(ctx context.Context, c *FileReplicaClient, p litestream.Pos) error {
		rc, err := c.WALSegmentReader(ctx, p)
		if err == nil {
			err = rc.Close()
		}
		return err
	}, "gio"},
	{"DeleteSnapshot", func(ctx context.Context, c *FileReplicaClient, p litestream.Pos) error {
		return c.DeleteSnapshot(ctx, p.Generation, p.Index)
	}, "gi"},
	{"DeleteWALSegments", func(ctx context.Context, c *FileReplicaClient, p litestream.Pos) error {
		return c.DeleteWALSegments(ctx, []litestream.Pos{pos(1, 0), p})
	}, "gio"},
	{"DeleteGeneration", func(ctx context.Context, c *FileReplicaClient, p litestream.Pos) error {
		return c.DeleteGeneration(ctx, p.Generation)
	}, "g"},
}

func TestInvalidNamesAreErrorsAndTouchNothing(t *testing.T) {
	c := newClient(t)
	writeSegment(t, c, pos(1, 0), "keep")
	before := tree(t, c)
	bad := map[string][]litestream.Pos{"i": {pos(-1, 0)}, "o": {pos(1, -1)}}
	for _, g := range []string{"", ".", "..", "../../x", "/", gen[:15], gen + "0", strings.ToUpper(gen), "0123456789abcde/"} {
		bad["g"] = append(bad["g"], litestream.Pos{Generation: g, Index: 1})
	}
	for _, m := range calls {
		for part, positions := range bad {
			for _, p := range positions {
				if !strings.Contains(m.uses, part) {
					continue
				}
				err := m.call(t.Context(), c, p)
				if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), fmt.Sprint(map[string]any{
					"g": fmt.Sprintf("%q", p.Generation), "i": p.Index, "o": p.Offset,
				}[part])) {
					t.Errorf("%s(%+v): error %v does not name the argument", m.name, p, err)
				}
			}
		}
		if err := m.call(t.Context(), NewFileReplicaClient(""), pos(1, 0)); err == nil || !strings.Contains(err.Error(), "path") {
			t.Errorf("%s without a path: %v", m.name, err)
		}
	}
	if _, err := NewFileReplicaClient("").Generations(t.Context()); err == nil {
		t.Error("generations without a path")
	}
	if got := tree(t, c); !slices.Equal(got, before) {
		t.Errorf("files %q, want %q", got, before)
	}
}

func TestCancelledContextEndsEveryCall(t *testing.T) {
	c := newClient(t)
	writeSegment(t, c, pos(1, 0), "keep")
	writeSnapshot(t, c, gen, 1, "keep")
	before := tree(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, m := range calls {
		takesContext := !strings.HasSuffix(m.name, "Dir") && !strings.HasSuffix(m.name, "Path")
		if err := m.call(ctx, c, pos(1, 0)); takesContext != errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", m.name, err)
		}
	}
	if _, err := c.Generations(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Generations: %v", err)
	}
	if got := tree(t, c); !slices.Equal(got, before) {
		t.Errorf("files %q, want %q", got, before)
	}
}

// funcReader is an io.Reader.
type funcReader func(p []byte) (int, error)

func (f funcReader) Read(p []byte) (int, error) { return f(p) }

// PITFALLS row 20
func TestWriteThatEndsEarlyPublishesNothing(t *testing.T) {
	for _, test := range []struct {
		name string
		want error
		read func(cancel func(), n int) error // what the nth read does
	}{
		{"error at first", io.ErrUnexpectedEOF, func(_ func(), n int) error { return io.ErrUnexpectedEOF }},
		{"error later", os.ErrNotExist, func(_ func(), n int) error {
			if n == 3 {
				return fmt.Errorf("source: %w", os.ErrNotExist)
			}
			return nil
		}},
		{"cancelled between reads", context.Canceled, func(cancel func(), n int) error {
			if n == 3 {
				cancel()
			}
			if n > 3 {
				return errors.New("read after the context ended")
			}
			return nil
		}},
		{"cancelled at the end", context.Canceled, func(cancel func(), n int) error {
			if n == 3 {
				cancel()
				return io.EOF
			}
			return nil
		}},
	} {
		for _, existed := range []bool{false, true} {
			c := newClient(t)
			var before []string
			if existed {
				writeSnapshot(t, c, gen, 1, "old")
				writeSegment(t, c, pos(1, 0), "old")
				before = tree(t, c)
			}
			write := func(call func(context.Context, io.Reader) error) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				n := 0
				err := call(ctx, funcReader(func(p []byte) (int, error) {
					n++
					return copy(p, "new"), test.read(cancel, n)
				}))
				if !errors.Is(err, test.want) {
					t.Errorf("%s: %v", test.name, err)
				}
			}
			write(func(ctx context.Context, r io.Reader) error { _, err := c.WriteSnapshot(ctx, gen, 1, r); return err })
			write(func(ctx context.Context, r io.Reader) error {
				_, err := c.WriteWALSegment(ctx, pos(1, 0), r)
				return err
			})
			if existed {
				if got := tree(t, c); !slices.Equal(got, before) {
					t.Errorf("%s: files %q, want %q", test.name, got, before)
				}
				rc, err := c.SnapshotReader(t.Context(), gen, 1)
				if got := readAll(t, rc, err); got != "old" {
					t.Errorf("%s: snapshot %q", test.name, got)
				}
				continue
			}
			for _, name := range tree(t, c) { // directories may stay
				if strings.Contains(filepath.Base(name), ".") {
					t.Errorf("%s: left %s", test.name, name)
				}
			}
			if a, b := listSnapshots(t, c), listSegments(t, c); len(a)+len(b) > 0 {
				t.Errorf("%s: listed %v, %v", test.name, a, b)
			}
		}
	}
}

func TestListingsIgnoreStrangeFiles(t *testing.T) {
	c := newClient(t)
	snapshot := writeSnapshot(t, c, gen, 1, "s")
	segment := writeSegment(t, c, pos(1, 0), "w")
	for _, name := range []string{
		"../README", "../0123456789abcdef0", "../fedcba9876543210", // a file, not a generation
		"../0123456789ABCDEF/x", "snapshots/README", "snapshots/0000000000000002.snapshot",
		"snapshots/0000000000000002.snapshot.lz4.12-1.tmp", "snapshots/000000000000000G.snapshot.lz4",
		"snapshots/8000000000000000.snapshot.lz4", "snapshots/0000000000000003.snapshot.lz4/x",
		"snapshots/2.snapshot.lz4", "snapshots/.snapshot.lz4",
		"wal/README", "wal/0000000000000002", "wal/0000000000000003/README", "wal/3/0000000000000000.wal.lz4",
		"wal/0000000000000003/0000000000000000.wal.lz4.12-1.tmp", "wal/0000000000000003/0000000000000000.wal",
		"wal/0000000000000003/0000000000000000.wal.lz4/x", "wal/0000000000000003/8000000000000000.wal.lz4",
		"wal/00000003_0000000.wal.lz4", "wal/00000003_0000000000000000.wal.lz4", "wal/00000003.wal.lz4",
		"wal/00000004_00000000.wal.lz4/x", "wal/_.wal.lz4",
	} {
		put(t, c, name, "strange")
	}
	if runtime.GOOS == "windows" {
		t.Skip("names differ by case")
	}
	if got, err := c.Generations(t.Context()); err != nil || !slices.Equal(got, []string{gen}) {
		t.Errorf("generations %q, %v", got, err)
	}
	if got := listSnapshots(t, c); !slices.Equal(got, []litestream.SnapshotInfo{snapshot}) {
		t.Errorf("snapshots %v", got)
	}
	if got := listSegments(t, c); !slices.Equal(got, []litestream.WALSegmentInfo{segment}) {
		t.Errorf("segments %v", got)
	}
	if err := c.DeleteGeneration(t.Context(), gen); err != nil {
		t.Error(err)
	}
	if got := listSegments(t, c); len(got) > 0 {
		t.Errorf("segments %v", got)
	}
	if _, err := os.Lstat(filepath.Join(c.path, "generations", gen)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("generation directory: %v", err)
	}
}

func TestReplicaOfV03IsRead(t *testing.T) {
	c := newClient(t)
	put(t, c, "snapshots/0000001f.snapshot.lz4", "old snapshot")
	put(t, c, "wal/0000001f_00000000.wal.lz4", "old 0")
	put(t, c, "wal/0000001f_00001038.wal.lz4", "old 1038")
	put(t, c, "wal/00000020_00000000.wal.lz4", "old next")
	writeSegment(t, c, pos(0x1f, 0x1038), "ours")
	writeSegment(t, c, pos(0x1f, 0x2070), "ours 2070")

	if got := listSnapshots(t, c); len(got) != 1 || got[0].Index != 0x1f || got[0].Size != 12 || got[0].Generation != gen {
		t.Errorf("snapshots %v", got)
	}
	rc, err := c.SnapshotReader(t.Context(), gen, 0x1f)
	if got := readAll(t, rc, err); got != "old snapshot" {
		t.Errorf("snapshot %q", got)
	}
	want := map[litestream.Pos]string{pos(0x1f, 0): "old 0", pos(0x1f, 0x1038): "ours", pos(0x1f, 0x2070): "ours 2070", pos(0x20, 0): "old next"}
	infos := listSegments(t, c)
	if len(infos) != len(want) || !slices.IsSortedFunc(infos, func(a, b litestream.WALSegmentInfo) int {
		n, _ := litestream.ComparePos(a.Pos(), b.Pos())
		return n
	}) {
		t.Errorf("segments %v", infos)
	}
	var all []litestream.Pos
	for _, info := range infos {
		rc, err := c.WALSegmentReader(t.Context(), info.Pos())
		if got := readAll(t, rc, err); got != want[info.Pos()] || info.Size != int64(len(got)) {
			t.Errorf("segment %s: %q, size %d", info.Pos(), got, info.Size)
		}
		all = append(all, info.Pos())
	}

	writeSnapshot(t, c, gen, 0x1f, "ours")
	rc, err = c.SnapshotReader(t.Context(), gen, 0x1f)
	if got := readAll(t, rc, err); got != "ours" {
		t.Errorf("snapshot %q", got)
	}
	if got := listSnapshots(t, c); len(got) != 1 || got[0].Size != 4 {
		t.Errorf("snapshots %v", got)
	}
	if err := errors.Join(c.DeleteSnapshot(t.Context(), gen, 0x1f), c.DeleteWALSegments(t.Context(), all)); err != nil {
		t.Error(err)
	}
	if a, b := listSnapshots(t, c), listSegments(t, c); len(a)+len(b) > 0 {
		t.Errorf("after deletes: %v, %v", a, b)
	}
}

func TestPermissionsAndOwner(t *testing.T) {
	c := newClient(t)
	c.FileMode, c.DirMode, c.Uid, c.Gid = 0o400, 0o500|0o200, 12, 34
	owners := ownerFS{FS: fsys.OS, owned: map[string]bool{}}
	c.fs = owners
	writeSegment(t, c, pos(1, 0), "x")
	name, _ := c.WALSegmentPath(gen, 1, 0)
	for path := filepath.Dir(name); path != filepath.Dir(c.path); path = filepath.Dir(path) {
		info, err := os.Stat(path)
		if err != nil || !owners.owned[path] {
			t.Errorf("%s: owner set: %v, %v", path, owners.owned[path], err)
		} else if runtime.GOOS != "windows" && info.Mode().Perm() != c.DirMode {
			t.Errorf("%s: mode %v", path, info.Mode())
		}
	}
	if info, err := os.Stat(name); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o400 {
		t.Errorf("%v, %v", info, err)
	}
	if len(owners.owned) < 7 {
		t.Errorf("owners set: %v", owners.owned)
	}
}

// ownerFS notes the paths that are given the owner 12:34.
type ownerFS struct {
	fsys.FS
	owned map[string]bool
}

func (f ownerFS) Chown(name string, uid, gid int) error {
	f.owned[name] = uid == 12 && gid == 34
	return nil
}

func TestSegmentIntoKnownDirectoryCostsNoExtraOperation(t *testing.T) {
	c := newClient(t)
	f := faulty(c)
	writeSegment(t, c, pos(1, 0), "first")
	var ops []string
	f.SetHook(func(op faultfs.Op) error { ops = append(ops, op.Name); return nil })
	writeSegment(t, c, pos(1, 4152), "second")
	if want := []string{"create", "write", "fstat", "sync", "close", "rename", "syncdir"}; !slices.Equal(ops, want) {
		t.Errorf("operations %q, want %q", ops, want)
	}
}

func BenchmarkWriteWALSegment_4KiB(b *testing.B) {
	c := newClient(b)
	body := bytes.Repeat([]byte("x"), 4096)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for offset := int64(0); b.Loop(); offset += 4120 {
		if _, err := c.WriteWALSegment(b.Context(), pos(1, offset), bytes.NewReader(body)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRawFsyncRename is the least that a durable replacement costs.
func BenchmarkRawFsyncRename(b *testing.B) {
	for _, syncDir := range []bool{false, true} {
		b.Run(fmt.Sprintf("syncdir=%v", syncDir), func(b *testing.B) {
			dir := b.TempDir()
			body := bytes.Repeat([]byte("x"), 4096)
			b.SetBytes(int64(len(body)))
			for n := 0; b.Loop(); n++ {
				name := filepath.Join(dir, litestream.FormatIndex(n))
				f, err := os.OpenFile(name+".tmp", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
				if err != nil {
					b.Fatal(err)
				}
				_, err = f.Write(body)
				if err := errors.Join(err, f.Sync(), f.Close(), fsys.OS.Rename(name+".tmp", name)); err != nil {
					b.Fatal(err)
				}
				if syncDir {
					if err := fsys.OS.SyncDir(dir); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
