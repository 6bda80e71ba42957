package litestream_test

import (
	"bytes"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pierrec/lz4/v4"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/internal/walcheck"
)

// layout is where a version of Litestream keeps its files below the directory
// of a generation, with slashes.
type layout struct {
	snapshot func(index int) string
	segment  func(index int, offset int64) string
}

var (
	// layoutV04 is that of v0.4.0-beta.2, of its replicas and its shadow WAL.
	layoutV04 = layout{
		snapshot: func(index int) string { return fmt.Sprintf("snapshots/%016x.snapshot.lz4", index) },
		segment:  func(index int, offset int64) string { return fmt.Sprintf("wal/%016x/%016x.wal.lz4", index, offset) },
	}
	// layoutV03 is that of replicas of v0.3.
	layoutV03 = layout{
		snapshot: func(index int) string { return fmt.Sprintf("snapshots/%08x.snapshot.lz4", index) },
		segment:  func(index int, offset int64) string { return fmt.Sprintf("wal/%08x_%08x.wal.lz4", index, offset) },
	}
)

// lineage writes what another program would have stored of a database: from
// SQLite's own WAL, compressed with the lz4 package's defaults, one file a
// second. No other process uses the database, so its files may be read and closed.
type lineage struct {
	t       testing.TB
	path    string // of the database
	host    *sql.DB
	layout  layout
	dir     string // of the generation
	clock   time.Time
	index   int
	offset  int64  // 0 before the header of the index is stored
	header  []byte // of the index
	moments []moment
}

const otherGeneration = "0f1e2d3c4b5a6978"

// newLineage begins a generation of a new database in root.
func newLineage(t testing.TB, root string, l layout) *lineage {
	ln := &lineage{
		t:      t,
		path:   filepath.Join(t.TempDir(), "db"),
		layout: l,
		dir:    filepath.Join(root, "generations", otherGeneration),
		clock:  time.Date(2022, 3, 4, 5, 6, 0, 0, time.UTC),
	}
	ln.host = openHost(t, ln.path, "wal_autocheckpoint(0)")
	ln.host.SetMaxOpenConns(1)
	mustExec(t, ln.host, `CREATE TABLE log (n INTEGER PRIMARY KEY, note TEXT)`)
	mustExec(t, ln.host, `CREATE TABLE state (k TEXT PRIMARY KEY, v)`)
	return ln
}

// store writes a compressed file and returns when.
func (ln *lineage) store(name string, data []byte) time.Time {
	ln.t.Helper()
	name = filepath.Join(ln.dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		ln.t.Fatal(err)
	}
	writeFile(ln.t, name, defaultLZ4(ln.t, data))
	ln.clock = ln.clock.Add(time.Second)
	if err := os.Chtimes(name, ln.clock, ln.clock); err != nil {
		ln.t.Fatal(err)
	}
	return ln.clock
}

// defaultLZ4 compresses with 4 MiB blocks and a checksum of the content.
func defaultLZ4(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := lz4.NewWriter(&b)
	if _, err := zw.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	if z := b.Bytes(); z[4] != 0x64 || z[5] != 0x70 {
		t.Fatalf("frame descriptor %#x %#x: not the defaults that were meant", z[4], z[5])
	}
	return b.Bytes()
}

func (ln *lineage) snapshot() { ln.store(ln.layout.snapshot(ln.index), readFile(ln.t, ln.path)) }

// sync stores the WAL's header by itself, then all that was committed since.
func (ln *lineage) sync() (at time.Time) {
	wal := readFile(ln.t, ln.path+"-wal")
	if ln.offset == 0 {
		ln.header = wal[:litestream.WALHeaderSize]
		at = ln.store(ln.layout.segment(ln.index, 0), ln.header)
		ln.offset = litestream.WALHeaderSize
	}
	if !bytes.Equal(wal[:litestream.WALHeaderSize], ln.header) {
		ln.t.Fatal("the WAL restarted unseen")
	}
	if end := lastCommit(wal); end > ln.offset {
		at = ln.store(ln.layout.segment(ln.index, ln.offset), wal[ln.offset:end])
		ln.offset = end
	}
	return at
}

// lastCommit returns where the last transaction of a WAL ends. Behind it stand
// frames of an earlier WAL, with other salts.
func lastCommit(wal []byte) (end int64) {
	end = litestream.WALHeaderSize
	size := int64(litestream.WALFrameHeaderSize) + int64(binary.BigEndian.Uint32(wal[8:]))
	for at := end; at+size <= int64(len(wal)); at += size {
		if !bytes.Equal(wal[at+8:at+16], wal[16:24]) {
			break
		}
		if binary.BigEndian.Uint32(wal[at+4:]) != 0 {
			end = at + size
		}
	}
	return end
}

// log commits a note and stores it, as a moment.
func (ln *lineage) log(note string) {
	ln.t.Helper()
	mustExec(ln.t, ln.host, `INSERT INTO log (note) VALUES (?)`, note+strings.Repeat(" and more", 900))
	mustExec(ln.t, ln.host, `INSERT OR REPLACE INTO state VALUES ('last', ?)`, note)
	at := ln.sync()
	ln.moments = append(ln.moments, moment{
		note: note, at: at, want: dump(ln.t, ln.host),
		pos: litestream.Pos{Generation: otherGeneration, Index: ln.index, Offset: ln.offset},
	})
}

// restart has SQLite begin the WAL anew, with the next index.
func (ln *lineage) restart(mode string) {
	ln.checkpoint(mode)
	mustExec(ln.t, ln.host, `INSERT OR REPLACE INTO state VALUES ('restarted', ?)`, ln.index)
	ln.index, ln.offset = ln.index+1, 0
}

func (ln *lineage) checkpoint(mode string) {
	ln.t.Helper()
	var busy, frames, backfilled int
	if err := ln.host.QueryRow(`PRAGMA wal_checkpoint(`+mode+`)`).Scan(&busy, &frames, &backfilled); err != nil || busy != 0 {
		ln.t.Fatalf("checkpoint: busy %d, %v", busy, err)
	}
}

// pinned calls fn while a read transaction keeps what is committed now from
// being the last that a checkpoint copies: so the WAL does not restart.
func (ln *lineage) pinned(fn func()) {
	ln.t.Helper()
	reader := openHost(ln.t, ln.path)
	reader.SetMaxOpenConns(1)
	mustExec(ln.t, reader, `BEGIN`)
	mustExec(ln.t, reader, `SELECT COUNT(*) FROM log`)
	fn()
	mustExec(ln.t, reader, `COMMIT`)
	if err := reader.Close(); err != nil {
		ln.t.Fatal(err)
	}
}

// fill makes some indexes of several segments, and a second snapshot of which
// the file holds pages of its own index.
func (ln *lineage) fill() {
	ln.snapshot()
	for i, mode := range []string{"RESTART", "TRUNCATE", "RESTART", ""} {
		for j := range 3 {
			ln.log(fmt.Sprintf("index-%d-commit-%d", i, j))
		}
		if i == 2 {
			ln.pinned(func() {
				ln.log("behind the pin")
				ln.checkpoint("PASSIVE")
			})
			ln.snapshot()
			ln.log("after the second snapshot")
		}
		if mode != "" {
			ln.restart(mode)
		}
	}
}

// final returns the database with all of its WAL in it, at the end.
func (ln *lineage) final() []byte {
	ln.checkpoint("TRUNCATE")
	return readFile(ln.t, ln.path)
}

// Replicas of Litestream v0.4.0-beta.2 and v0.3 restore here, to the newest
// state and to each moment.
func TestInterchange_ReplicasOfLitestreamRestoreHere(t *testing.T) {
	for name, l := range map[string]layout{"v0.4.0-beta.2": layoutV04, "v0.3": layoutV03} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "replica")
			ln := newLineage(t, root, l)
			ln.fill()
			client := fileclient.NewFileReplicaClient(root)
			for i, m := range ln.moments {
				path, pos := restoreAt(t, client, m.at)
				if pos != m.pos {
					t.Errorf("%s: restored to %s, want %s", m.note, pos, m.pos)
				}
				if got := dumpFile(t, path); got != m.want {
					t.Errorf("%s: other rows were restored:\n%.300s", m.note, got)
				}
				if i == 0 {
					continue
				}
				plan, err := litestream.PlanRestore(ctx, client, m.at.Add(-1))
				if err != nil || !plan.CreatedAt.Before(m.at) {
					t.Errorf("%s: planned before it was stored: %v\n%s", m.note, err, plan)
				}
			}
			if ln.index != 3 || len(ln.moments) != 14 {
				t.Fatalf("%d moments up to index %d: not what was meant", len(ln.moments), ln.index)
			}
			checkReplica(t, client)
			want := ln.final()
			if got := readFile(t, mustRestore(t, client)); !bytes.Equal(got, want) {
				t.Errorf("restored %d bytes, want %d; first difference at %#x", len(got), len(want), firstDifference(got, want))
			}
			for _, snapshot := range []int{0, 2} {
				path := filepath.Join(t.TempDir(), "restored")
				if err := litestream.Restore(ctx, client, path, otherGeneration, snapshot, 3, quietRestore()); err != nil {
					t.Errorf("from snapshot %d: %v", snapshot, err)
				} else if !bytes.Equal(readFile(t, path), want) {
					t.Errorf("from snapshot %d: another database was restored", snapshot)
				}
			}
		})
	}
}

// crashed returns a database as a crash of its process leaves it, with a copy
// of the meta directory and of the replica that the other program had.
func (ln *lineage) crashed(t *testing.T, meta, replica string) *litestream.DB {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "db"), readFile(t, ln.path))
	writeFile(t, filepath.Join(dir, "db-wal"), readFile(t, ln.path+"-wal"))
	db := newDB(t, dir)
	copyTree(t, meta, db.MetaPath())
	copyTree(t, replica, filepath.Join(dir, "replica"))
	return db
}

// Where v0.4 ran before, this library goes on with its generation or begins a
// new one and says why. It never fails for good, and moments from before can
// be restored still.
func TestInterchange_MetaDirectoryOfLitestream(t *testing.T) {
	root := t.TempDir()
	meta, replica := filepath.Join(root, "meta"), filepath.Join(root, "replica")
	ln := newLineage(t, meta, layoutV04)
	ln.fill()
	writeFile(t, filepath.Join(meta, "generation"), []byte(otherGeneration+"\n"))
	writeFile(t, filepath.Join(meta, "position"), []byte(ln.moments[len(ln.moments)-1].pos.String()+"\n"))
	copyTree(t, meta, replica)
	if err := os.RemoveAll(filepath.Join(meta, "generations", otherGeneration, "snapshots")); err != nil {
		t.Fatal(err)
	}
	last := ln.moments[len(ln.moments)-1]
	previous := ln.moments[len(ln.moments)-2]
	lastName := filepath.FromSlash(layoutV04.segment(last.pos.Index, previous.pos.Offset))

	for _, tt := range []struct {
		name    string
		change  func(t *testing.T, db *litestream.DB)
		resumes bool
		reason  string
	}{
		{"after a crash", nil, true, ""},
		{"after a crash, with commits that v0.4 did not see", func(t *testing.T, db *litestream.DB) {
			host := openHost(t, db.Path(), "wal_autocheckpoint(0)")
			mustExec(t, host, `INSERT INTO log (note) VALUES ('unseen')`)
		}, true, ""},
		{"the replica lags", func(t *testing.T, db *litestream.DB) {
			dir, err := db.Replicas[0].Client().(*fileclient.FileReplicaClient).GenerationsDir()
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(dir, otherGeneration, lastName)); err != nil {
				t.Fatal(err)
			}
		}, false, "shadow wal is damaged"},
		{"old indexes were pruned", func(t *testing.T, db *litestream.DB) {
			for index := range last.pos.Index {
				if err := os.RemoveAll(filepath.Join(db.ShadowWALDir(otherGeneration), litestream.FormatIndex(index))); err != nil {
					t.Fatal(err)
				}
			}
		}, true, ""},
		{"after a clean end, which removes the WAL", func(t *testing.T, db *litestream.DB) {
			writeFile(t, db.Path(), ln.checkpointed(t))
			if err := os.Remove(db.WALPath()); err != nil {
				t.Fatal(err)
			}
		}, false, "new generation"},
		{"the last shadow segment is torn", func(t *testing.T, db *litestream.DB) {
			name := filepath.Join(db.GenerationPath(otherGeneration), lastName)
			writeFile(t, name, readFile(t, name)[:20])
		}, false, "shadow wal cannot be read"},
		{"the marker is empty", func(t *testing.T, db *litestream.DB) {
			writeFile(t, db.GenerationNamePath(), nil)
		}, false, "new generation"},
		{"v0.3 kept whole WALs", func(t *testing.T, db *litestream.DB) {
			if err := os.RemoveAll(db.ShadowWALDir(otherGeneration)); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(db.ShadowWALDir(otherGeneration), 0o700); err != nil {
				t.Fatal(err)
			}
			writeFile(t, filepath.Join(db.ShadowWALDir(otherGeneration), "00000003.wal"), readFile(t, db.WALPath()))
		}, false, "nothing was captured"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			db := ln.crashed(t, meta, replica)
			var logged logBuffer
			db.Logger = logged.logger()
			if tt.change != nil {
				tt.change(t, db)
			}
			mustOpen(t, db)
			client := db.Replicas[0].Client()
			host := openHost(t, db.Path())
			for i := range 3 {
				mustExec(t, host, `INSERT INTO log (note) VALUES (?)`, fmt.Sprint("ours ", i))
				mustSync(t, db)
			}
			mustEqualRestore(t, db, client)
			mustExec(t, host, `INSERT INTO log (note) VALUES ('in the next index')`)
			mustSync(t, db)
			mustEqualRestore(t, db, client)

			if resumed := db.Pos().Generation == otherGeneration; resumed != tt.resumes {
				t.Errorf("position is %s, resumed: %v, want %v\n%s", db.Pos(), resumed, tt.resumes, &logged)
			}
			if !strings.Contains(logged.String(), tt.reason) {
				t.Errorf("the reason %q was not logged:\n%s", tt.reason, &logged)
			}
			for _, m := range []moment{ln.moments[0], ln.moments[5], previous} {
				path, _ := restoreAt(t, client, m.at)
				if got := dumpFile(t, path); got != m.want {
					t.Errorf("%s: other rows were restored:\n%.300s", m.note, got)
				}
			}
		})
	}
}

// checkpointed returns the database with its WAL in it, and leaves both alone.
func (ln *lineage) checkpointed(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	writeFile(t, path, readFile(t, ln.path))
	writeFile(t, path+"-wal", readFile(t, ln.path+"-wal"))
	host := openHost(t, path)
	if err := host.Close(); err != nil { // the last one checkpoints
		t.Fatal(err)
	}
	return readFile(t, path)
}

// What this library stores follows the rules by which v0.4 and v0.3.x readers
// restore: names, exactly one LZ4 frame a file, since readers up to lz4 v4.1.21
// silently stop behind the first, the exact bytes of the WAL, and WAL files
// that SQLite itself recovers.
func TestInterchange_OurReplicasFollowTheRules(t *testing.T) {
	dir := t.TempDir()
	db := newDB(t, dir)
	mustOpen(t, db)
	db.StopMonitor()
	host := openHost(t, db.Path(), "wal_autocheckpoint(0)")
	mustExec(t, host, `CREATE TABLE t (x)`)
	wals := map[int][]byte{}
	for i, mode := range []string{litestream.CheckpointModeRestart, litestream.CheckpointModeTruncate, litestream.CheckpointModePassive, ""} {
		mustExec(t, host, `INSERT INTO t VALUES ('small')`)
		mustSync(t, db)
		mustExec(t, host, `INSERT INTO t VALUES (randomblob(300000)), (zeroblob(200000))`)
		for range 5 { // captured one by one, then joined into one segment
			mustExec(t, host, `INSERT INTO t SELECT substr(x, 1, 5000) FROM t LIMIT 3`)
			if err := db.Sync(ctx); err != nil {
				t.Fatal(err)
			}
		}
		mustSync(t, db)
		if i == 1 {
			if _, err := db.Replicas[0].Snapshot(ctx); err != nil {
				t.Fatal(err)
			}
		}
		wals[db.Pos().Index] = readFile(t, db.WALPath())[:db.Pos().Offset]
		if mode != "" {
			if err := db.Checkpoint(ctx, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(wals) < 3 {
		t.Fatalf("%d indexes: not what was meant", len(wals))
	}
	end := db.Pos()

	client := db.Replicas[0].Client().(*fileclient.FileReplicaClient)
	generations, err := client.GenerationsDir()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(generations, end.Generation)
	snapshots := map[int][]byte{}
	segments := map[int][]byte{}
	joined := 0
	for _, name := range filesBelow(t, root) { // in order
		content := oneFrame(t, filepath.Join(root, name))
		var index int
		var offset int64
		switch {
		case scans(name, "snapshots/%016x.snapshot.lz4", &index):
			snapshots[index] = content
		case scans(name, "wal/%016x/%016x.wal.lz4", &index, &offset):
			if want := wals[index][offset:]; !bytes.HasPrefix(want, content) {
				t.Errorf("%s: holds other bytes than the WAL at its offset", name)
			}
			if offset != int64(len(segments[index])) {
				t.Errorf("%s: the segment before it ends at %#x", name, len(segments[index]))
			}
			segments[index] = append(segments[index], content...)
			if err := walcheck.WAL(segments[index]); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if len(content) > 500000 {
				joined++
			}
		default:
			t.Errorf("%s: no other version knows this name", name)
		}
	}
	for index, wal := range wals {
		if !bytes.Equal(segments[index], wal) {
			t.Errorf("index %d: stored %d bytes, the WAL has %d", index, len(segments[index]), len(wal))
		}
	}
	if joined < 3 || len(snapshots) < 2 {
		t.Fatalf("%d joined segments and %d snapshots: not what was meant", joined, len(snapshots))
	}

	if err := db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
		t.Fatal(err)
	}
	want := readDatabase(t, db)
	for index, snapshot := range snapshots {
		if got := replay(t, snapshot, segments, index, end.Index); !bytes.Equal(got, want) {
			t.Errorf("SQLite restores %d bytes from snapshot %d, want %d; first difference at %#x",
				len(got), index, len(want), firstDifference(got, want))
		}
	}
}

// replay restores as those versions do: each index's segments become a -wal
// that SQLite checkpoints into the file.
func replay(t testing.TB, snapshot []byte, segments map[int][]byte, from, to int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "replayed")
	writeFile(t, path, snapshot)
	for index := from; index <= to; index++ {
		wal, ok := segments[index]
		if !ok {
			t.Fatalf("index %d is missing, which those versions refuse", index)
		}
		writeFile(t, path+"-wal", wal)
		host, err := sql.Open("sqlite", "file:"+path)
		if err != nil {
			t.Fatal(err)
		}
		var busy, frames, backfilled int
		err = host.QueryRow(`PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &frames, &backfilled)
		if err = errors.Join(err, host.Close()); err != nil || busy != 0 {
			t.Fatalf("index %d: busy %d, %v", index, busy, err)
		}
	}
	return readFile(t, path)
}

// filesBelow returns the relative names of all files, with slashes, sorted.
func filesBelow(t testing.TB, root string) (names []string) {
	t.Helper()
	if err := fs.WalkDir(os.DirFS(root), ".", func(name string, ent fs.DirEntry, err error) error {
		if err == nil && !ent.IsDir() {
			names = append(names, name)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// scans reports whether name is what the format prints of the numbers that it
// scans from it.
func scans(name, format string, numbers ...any) bool {
	if n, err := fmt.Sscanf(name, format, numbers...); err != nil || n != len(numbers) {
		return false
	}
	values := make([]any, len(numbers))
	for i, p := range numbers {
		switch p := p.(type) {
		case *int:
			values[i] = *p
		case *int64:
			values[i] = *p
		}
	}
	return fmt.Sprintf(format, values...) == name
}

// oneFrame returns what the first LZ4 frame of a file holds, decoded by the
// description of the format, and insists that nothing follows it and that the
// package agrees.
func oneFrame(t testing.TB, name string) []byte {
	t.Helper()
	z := readFile(t, name)
	content, rest, err := decodeFrame(z)
	if err != nil || len(rest) > 0 {
		t.Fatalf("%s: %d bytes follow the first frame, %v", name, len(rest), err)
	}
	all, err := io.ReadAll(lz4.NewReader(bytes.NewReader(z)))
	if err != nil || !bytes.Equal(all, content) {
		t.Fatalf("%s: the package reads %d bytes, %v, want %d", name, len(all), err, len(content))
	}
	return content
}

// decodeFrame decodes the LZ4 frame that z begins with and returns what follows
// it. It leaves checksums to the package. See
// https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md.
func decodeFrame(z []byte) (content, rest []byte, err error) {
	if len(z) < 7 || binary.LittleEndian.Uint32(z) != 0x184d2204 {
		return nil, nil, errors.New("no frame")
	}
	flags, descriptor := z[4], z[5]
	if flags>>6 != 1 || flags&0x03 != 0 || descriptor&0x8f != 0 {
		return nil, nil, fmt.Errorf("frame flags %#x %#x", flags, descriptor)
	}
	independent, blockSum := flags&0x20 != 0, flags&0x10 != 0
	blockMax := 1 << (8 + 2*int(descriptor>>4)) // 4: 64 KiB … 7: 4 MiB
	z = z[7:]
	if flags&0x08 != 0 {
		return nil, nil, errors.New("frame states its size")
	}
	for {
		if len(z) < 4 {
			return nil, nil, errors.New("frame is cut")
		}
		word := binary.LittleEndian.Uint32(z)
		z = z[4:]
		if word == 0 {
			break
		}
		n, start := int(word&^(1<<31)), len(content)
		if n > len(z) {
			return nil, nil, errors.New("block is cut")
		}
		if word>>31 == 1 {
			content = append(content, z[:n]...)
		} else {
			oldest := 0
			if independent {
				oldest = start
			}
			if content, err = decodeBlock(content, z[:n], oldest); err != nil {
				return nil, nil, err
			}
		}
		if len(content)-start > blockMax {
			return nil, nil, fmt.Errorf("block of %d bytes in a frame of at most %d", len(content)-start, blockMax)
		}
		if z = z[n:]; blockSum {
			z = z[min(4, len(z)):]
		}
	}
	if flags&0x04 != 0 {
		z = z[min(4, len(z)):]
	}
	return content, z, nil
}

// decodeBlock appends what a block holds to dst. Its matches begin at or behind
// oldest.
func decodeBlock(dst, z []byte, oldest int) ([]byte, error) {
	bad := errors.New("bad block")
	length := func(n int) int {
		for more := n == 15; more && len(z) > 0; z = z[1:] {
			n += int(z[0])
			more = z[0] == 255
		}
		return n
	}
	for len(z) > 0 {
		token := z[0]
		z = z[1:]
		n := length(int(token >> 4))
		if n > len(z) {
			return nil, bad
		}
		dst, z = append(dst, z[:n]...), z[n:]
		if len(z) == 0 {
			return dst, nil // the last sequence has literals alone
		}
		if len(z) < 2 {
			return nil, bad
		}
		from := len(dst) - int(binary.LittleEndian.Uint16(z))
		if from < oldest || from == len(dst) {
			return nil, bad
		}
		z = z[2:]
		for range length(int(token&15)) + 4 {
			dst = append(dst, dst[from])
			from++
		}
	}
	return nil, bad
}

// The rule that our files follow matters: two frames are one file to today's
// package, and half a file to the reader that stops behind the first.
func TestInterchange_SecondFrameIsNoticed(t *testing.T) {
	z := slices.Concat(defaultLZ4(t, bytes.Repeat([]byte("first"), 1000)), defaultLZ4(t, []byte("second")))
	content, rest, err := decodeFrame(z)
	if err != nil || len(content) != 5000 || len(rest) == 0 {
		t.Errorf("%d bytes, %d left, %v", len(content), len(rest), err)
	}
}
