package fileclient

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"example.com/litestream"
)

// file is a snapshot or a segment in a listing.
type file struct {
	index  int
	offset int64 // 0 for snapshots
	rank   int   // 0 in our layout, 1 in that of v0.3
	info   fs.FileInfo
}

// parseSnapshotName parses a snapshot's file name, in either layout.
func parseSnapshotName(name string) (file, bool) {
	digits, ok := strings.CutSuffix(name, litestream.SnapshotExt)
	if !ok {
		return file{}, false
	}
	if index, err := litestream.ParseIndex(digits); err == nil {
		return file{index: index}, true
	}
	index, ok := parseLegacyIndex(digits)
	return file{index: index, rank: 1}, ok
}

// parseSegmentName parses the file name of a segment of index.
func parseSegmentName(index int, name string) (file, bool) {
	digits, ok := strings.CutSuffix(name, litestream.WALSegmentExt)
	if !ok {
		return file{}, false
	}
	offset, err := litestream.ParseOffset(digits)
	return file{index: index, offset: offset}, err == nil
}

// parseLegacySegmentName parses the file name of a segment of v0.3.
func parseLegacySegmentName(name string) (file, bool) {
	name, ok := strings.CutSuffix(name, litestream.WALSegmentExt)
	indexDigits, offsetDigits, ok2 := strings.Cut(name, "_")
	if !ok || !ok2 {
		return file{}, false
	}
	index, ok := parseLegacyIndex(indexDigits)
	offset, err := litestream.ParseOffset(legacyPad + offsetDigits)
	return file{index: index, offset: offset, rank: 1}, ok && err == nil
}

// legacyPad turns the 8 digits of v0.3 into ours.
const legacyPad = "00000000"

func parseLegacyIndex(digits string) (int, bool) {
	index, err := litestream.ParseIndex(legacyPad + digits)
	return index, err == nil
}

// legacySnapshotPath returns where v0.3 kept the snapshot that we keep at name.
func legacySnapshotPath(name string, index int) string {
	return filepath.Join(filepath.Dir(name), fmt.Sprintf("%08x", index)+litestream.SnapshotExt)
}

// legacySegmentPath returns where v0.3 kept the segment that we keep at name.
func legacySegmentPath(name string, index int, offset int64) string {
	walDir := filepath.Dir(filepath.Dir(name))
	return filepath.Join(walDir, fmt.Sprintf("%08x_%08x", index, offset)+litestream.WALSegmentExt)
}
