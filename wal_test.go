package litestream

import (
	"bytes"
	"database/sql"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// walSubject is a database in WAL mode that never checkpoints by itself, on
// one connection.
type walSubject struct {
	t    testing.TB
	path string
	db   *sql.DB
}

func openWALSubject(t testing.TB, path string, pageSize int) *walSubject {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	s := &walSubject{t: t, path: path, db: db}
	s.exec(fmt.Sprintf("PRAGMA page_size=%d", pageSize))
	s.exec("PRAGMA journal_mode=wal")
	s.exec("PRAGMA wal_autocheckpoint=0")
	return s
}

func (s *walSubject) exec(q string, args ...any) {
	s.t.Helper()
	if _, err := s.db.Exec(q, args...); err != nil {
		s.t.Fatalf("%s: %v", q, err)
	}
}

func (s *walSubject) int(q string) (n int) {
	s.t.Helper()
	if err := s.db.QueryRow(q).Scan(&n); err != nil {
		s.t.Fatalf("%s: %v", q, err)
	}
	return n
}

// wal returns the bytes of the -wal, which carries no locks.
func (s *walSubject) wal() []byte {
	s.t.Helper()
	b, err := os.ReadFile(s.path + "-wal")
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// newWALSubject has a table and one row in the database file, and an empty WAL.
func newWALSubject(t testing.TB, pageSize int) *walSubject {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	s := openWALSubject(t, path, pageSize)
	s.exec("CREATE TABLE t (x)")
	s.exec("INSERT INTO t VALUES (zeroblob(100))")
	if err := s.db.Close(); err != nil { // checkpoints and deletes the WAL
		t.Fatal(err)
	}
	return openWALSubject(t, path, pageSize)
}

var realPageSizes = []int{512, 1024, 4096, 16384, 65536}

// buildWAL returns a WAL of one frame for each pgno. A negative one commits.
func buildWAL(pageSize int, bigEndian bool, pgnos ...int) []byte {
	h := newWALHeader(pageSize, 0xfeedbeef, 7, bigEndian)
	c := startWAL(h)
	b := bytes.Clone(h.raw[:])
	page := make([]byte, pageSize)
	for i, pgno := range pgnos {
		for j := range page {
			page[j] = byte(i + j*j)
		}
		f := walFrame{pgno: uint32(max(pgno, -pgno))}
		if pgno < 0 {
			f.commit = 9
		}
		b = c.appendFrame(b, f, page)
	}
	return b
}

func mustParseWALHeader(t testing.TB, b []byte) walHeader {
	t.Helper()
	h, err := parseWALHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// scanWAL scans b, a whole WAL file.
func scanWAL(t testing.TB, b []byte) walScan {
	t.Helper()
	s := newWALScan(startWAL(mustParseWALHeader(t, b)))
	s.feed(b[WALHeaderSize:])
	return s
}

// specChecksum follows the text of https://www.sqlite.org/fileformat2.html.
func specChecksum(bo binary.ByteOrder, s0, s1 uint32, b []byte) (uint32, uint32) {
	for i := 0; i+8 <= len(b); i += 8 {
		s0 += bo.Uint32(b[i:]) + s1
		s1 += bo.Uint32(b[i+4:]) + s0
	}
	return s0, s1
}

func TestChecksum_EqualsSpecification(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, bo := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		for n := range 200 {
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(rnd.Uint32())
			}
			s0, s1 := rnd.Uint32(), rnd.Uint32()
			w0, w1 := specChecksum(bo, s0, s1, b)
			if g0, g1 := Checksum(bo, s0, s1, b); g0 != w0 || g1 != w1 {
				t.Fatalf("%s, %d bytes: %08x %08x, want %08x %08x", bo, n, g0, g1, w0, w1)
			}
			k := n / 2 &^ 7
			p0, p1 := Checksum(bo, s0, s1, b[:k])
			if g0, g1 := Checksum(bo, p0, p1, b[k:]); g0 != w0 || g1 != w1 {
				t.Fatalf("%s: %d bytes in two parts give another checksum", bo, n)
			}
		}
	}
}

func TestChecksum_NativeOrderIsItsOwnOrder(t *testing.T) {
	b := randomBytes(64)
	w0, w1 := specChecksum(binary.NativeEndian, 0, 0, b)
	bo := binary.ByteOrder(binary.LittleEndian)
	if nativeBigEndian {
		bo = binary.BigEndian
	}
	for _, bo := range []binary.ByteOrder{bo, binary.NativeEndian} {
		if g0, g1 := Checksum(bo, 0, 0, b); g0 != w0 || g1 != w1 {
			t.Fatalf("%s: checksum %08x %08x, want %08x %08x", bo, g0, g1, w0, w1)
		}
	}
}

func TestParseWALHeader(t *testing.T) {
	for _, bigEndian := range []bool{false, true} {
		for size := minPageSize; size <= maxPageSize; size *= 2 {
			b := buildWAL(size, bigEndian, -1)
			h := mustParseWALHeader(t, b)
			if h.pageSize != size || h.salt1 != 0xfeedbeef || h.salt2 != 7 || h.bigEndian != bigEndian {
				t.Fatalf("header of page size %d, big-endian %t: %+v", size, bigEndian, h)
			}
			if !bytes.Equal(h.raw[:], b[:WALHeaderSize]) || h.isZero() {
				t.Fatal("raw header differs")
			}
		}
	}
}

func TestParseWALHeader_RefusesBadHeaders(t *testing.T) {
	good := buildWAL(4096, false)
	// edit changes a field and makes the checksum right again.
	edit := func(at int, v uint32) []byte {
		b := bytes.Clone(good)
		binary.BigEndian.PutUint32(b[at:], v)
		s0, s1 := specChecksum(binary.LittleEndian, 0, 0, b[:24])
		binary.BigEndian.PutUint32(b[24:], s0)
		binary.BigEndian.PutUint32(b[28:], s1)
		return b
	}
	if _, err := parseWALHeader(edit(16, 5)); err != nil {
		t.Fatalf("edited salt: %v", err)
	}
	for _, tt := range []struct {
		name string
		b    []byte
		want string
	}{
		{"empty", nil, "truncated"},
		{"short", good[:31], "truncated"},
		{"zero", make([]byte, 32), "magic"},
		{"magic above", edit(0, walMagic+2), "magic"},
		{"magic below", edit(0, walMagic-2), "magic"},
		{"other byte order", edit(0, walMagic+1), "checksum"},
		{"version", edit(4, walVersion+1), "version"},
		{"page size 0", edit(8, 0), "page size"},
		{"page size 256", edit(8, 256), "page size"},
		{"page size 131072", edit(8, 131072), "page size"},
		{"page size 4097", edit(8, 4097), "page size"},
		{"page size 1<<31", edit(8, 1<<31), "page size"},
	} {
		if h, err := parseWALHeader(tt.b); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want an error about %s", tt.name, err, tt.want)
		} else if !h.isZero() {
			t.Errorf("%s: header is not zero", tt.name)
		}
	}
	for i := range WALHeaderSize {
		b := bytes.Clone(good)
		b[i] ^= 1
		if _, err := parseWALHeader(b); err == nil {
			t.Errorf("flipped byte %d: no error", i)
		}
	}
}

func TestWALScan_FindsEveryCommitOfRealWALs(t *testing.T) {
	for _, pageSize := range realPageSizes {
		t.Run(fmt.Sprint(pageSize), func(t *testing.T) {
			subject := newWALSubject(t, pageSize)
			for i := range 20 {
				subject.exec("INSERT INTO t VALUES (randomblob(?))", i*300)
				b := subject.wal()
				s := scanWAL(t, b)
				if s.commit.offset != int64(len(b)) || s.tip != s.commit {
					t.Fatalf("commit %d ends at %d, tip at %d, want %d", i, s.commit.offset, s.tip.offset, len(b))
				}
				if want := subject.int("PRAGMA page_count"); int(s.pages) != want {
					t.Fatalf("commit %d has %d pages, want %d", i, s.pages, want)
				}
			}
			b := subject.wal()
			want := scanWAL(t, b)
			n := int64(WALFrameHeaderSize + pageSize)
			if got := want.tip.frames(); got != (int64(len(b))-WALHeaderSize)/n {
				t.Fatalf("%d frames", got)
			}
			if !bytes.Equal(want.tip.last[:], b[int64(len(b))-n:][:WALFrameHeaderSize]) {
				t.Fatal("last frame header differs from the file")
			}
			// Chunks of any size must give the same, when what feed did not
			// take is offered again.
			s := newWALScan(startWAL(want.tip.header))
			for end := WALHeaderSize; s.tip.offset < int64(len(b)); end = min(end+pageSize*2/3, len(b)) {
				s.feed(b[s.tip.offset:end])
			}
			if s != want {
				t.Fatal("scan in chunks differs from scan in one piece")
			}
		})
	}
}

// A transaction that outgrows the page cache writes frames before it commits.
func TestWALScan_UncommittedTailIsNotCommitted(t *testing.T) {
	for _, end := range []string{"COMMIT", "ROLLBACK"} {
		t.Run(end, func(t *testing.T) {
			subject := newWALSubject(t, 1024)
			subject.exec("PRAGMA cache_size=10")
			subject.exec("INSERT INTO t VALUES (1)")
			before := scanWAL(t, subject.wal())
			subject.exec("BEGIN")
			subject.exec("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 100) INSERT INTO t SELECT randomblob(900) FROM n")
			b := subject.wal()
			spilled := scanWAL(t, b)
			if spilled.tip.offset <= before.tip.offset {
				t.Fatalf("the transaction did not spill: tip at %d", spilled.tip.offset)
			}
			if spilled.commit != before.commit || spilled.pages != before.pages {
				t.Fatalf("commit moved from %d to %d", before.commit.offset, spilled.commit.offset)
			}
			// SQLite may rewrite frames of the open transaction, so a capture
			// goes on from the commit, not from the tip.
			subject.exec("UPDATE t SET x = randomblob(900)")
			subject.exec(end)
			subject.exec("INSERT INTO t VALUES (2)")
			b = subject.wal()
			s := newWALScan(spilled.commit)
			_, committed := s.feed(b[spilled.commit.offset:])
			if s.commit.offset != spilled.commit.offset+int64(committed) || committed == 0 {
				t.Fatalf("committed %d bytes, commit at %d", committed, s.commit.offset)
			}
			if want := scanWAL(t, b); s.commit != want.commit {
				t.Fatal("going on from the commit differs from a whole scan")
			}
			if want := subject.int("PRAGMA page_count"); int(s.pages) != want {
				t.Fatalf("%d pages, want %d", s.pages, want)
			}
		})
	}
}

func TestWALScan_StopsAtStaleFramesOfARestartedWAL(t *testing.T) {
	subject := newWALSubject(t, 4096)
	for range 10 {
		subject.exec("INSERT INTO t VALUES (randomblob(9000))")
	}
	old := subject.wal()
	subject.exec("PRAGMA wal_checkpoint(RESTART)")
	subject.exec("INSERT INTO t VALUES (1)")
	b := subject.wal()
	if len(b) != len(old) {
		t.Fatalf("WAL is %d bytes, was %d: no stale frames left", len(b), len(old))
	}
	before, after := mustParseWALHeader(t, old), mustParseWALHeader(t, b)
	if after.salt1 != before.salt1+1 {
		t.Fatalf("salt-1 went from %08x to %08x", before.salt1, after.salt1)
	}
	s := scanWAL(t, b)
	if s.tip != s.commit || s.tip.offset >= int64(len(b)) || s.tip.frames() == 0 {
		t.Fatalf("scan went to %d, commit at %d, of %d bytes", s.tip.offset, s.commit.offset, len(b))
	}
	// The frame behind is the old one of that place, and whole.
	frame := b[s.tip.offset:][:s.tip.header.frameSize()]
	if !bytes.Equal(frame, old[s.tip.offset:][:len(frame)]) {
		t.Fatal("the frame behind the tip is not a stale one")
	}
}

func TestWALScan_NoFlippedByteIsAccepted(t *testing.T) {
	for _, bigEndian := range []bool{false, true} {
		good := buildWAL(512, bigEndian, -1, 2, -3, -4)
		n := WALFrameHeaderSize + 512
		for i := WALHeaderSize; i < len(good); i++ {
			b := bytes.Clone(good)
			b[i] ^= 0x40
			first := (i - WALHeaderSize) / n * n
			s := newWALScan(startWAL(mustParseWALHeader(t, b)))
			if valid, _ := s.feed(b[WALHeaderSize:]); valid != first {
				t.Fatalf("flipped byte %d: %d bytes are valid, want %d", i, valid, first)
			}
		}
	}
}

func TestWALScan_EmptyAndUnknown(t *testing.T) {
	b := buildWAL(512, false, -1)
	s := newWALScan(startWAL(mustParseWALHeader(t, b)))
	for _, cut := range []int{0, 1, WALFrameHeaderSize, len(b) - WALHeaderSize - 1} {
		if valid, committed := s.feed(b[WALHeaderSize:][:cut]); valid != 0 || committed != 0 || s.tip.frames() != 0 {
			t.Fatalf("%d bytes of a frame: %d valid, %d committed", cut, valid, committed)
		}
	}
	if valid, committed := s.feed(b[WALHeaderSize:]); valid != 536 || committed != 536 {
		t.Fatalf("one frame: %d valid, %d committed", valid, committed)
	}
	// Without a header nothing is a frame, not even 24 bytes whose salts and
	// checksum are those of the zero cursor.
	z := newWALScan(walCursor{})
	frame := make([]byte, WALFrameHeaderSize)
	binary.BigEndian.PutUint32(frame, 1)
	s0, s1 := specChecksum(binary.LittleEndian, 0, 0, frame[:8])
	binary.BigEndian.PutUint32(frame[16:], s0)
	binary.BigEndian.PutUint32(frame[20:], s1)
	if valid, _ := z.feed(frame); valid != 0 || z.tip.frames() != 0 {
		t.Fatal("a cursor without header moved")
	}
	// A page number of 0 is no frame even with a right checksum.
	if s := scanWAL(t, buildWAL(512, false, -1, 0)); s.tip.frames() != 1 {
		t.Fatalf("%d frames, want 1", s.tip.frames())
	}
}

func BenchmarkChecksum(b *testing.B) {
	page := randomBytes(4096)
	for _, bo := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		b.Run(bo.String(), func(b *testing.B) {
			b.SetBytes(int64(len(page)))
			b.ReportAllocs()
			var s0, s1 uint32
			for b.Loop() {
				s0, s1 = Checksum(bo, s0, s1, page)
			}
		})
	}
}

func BenchmarkWALScan(b *testing.B) {
	pgnos := make([]int, 1000)
	for i := range pgnos {
		pgnos[i] = i + 1
		if i%5 == 4 {
			pgnos[i] = -pgnos[i]
		}
	}
	wal := buildWAL(4096, nativeBigEndian, pgnos...)
	c := startWAL(mustParseWALHeader(b, wal))
	b.SetBytes(int64(len(wal)))
	b.ReportAllocs()
	for b.Loop() {
		s := newWALScan(c)
		if _, committed := s.feed(wal[WALHeaderSize:]); committed != len(wal)-WALHeaderSize {
			b.Fatal(committed)
		}
	}
}
