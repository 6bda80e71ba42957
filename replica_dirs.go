package litestream

import (
	"fmt"
	"path/filepath"
	"strings"
)

// dir returns the directory of a replica of files, "" for any other.
func (r *Replica) dir() string {
	if c, ok := r.client.(interface{ Path() string }); ok && r.client.Type() == "file" && c.Path() != "" {
		return resolvePath(c.Path())
	}
	return ""
}

// checkReplicaDirs rejects a directory that a replica cannot have for itself.
// One that another database replicates to is found out by the lineage.
func (db *DB) checkReplicaDirs() error {
	names := make(map[string]string)
	for _, r := range db.Replicas {
		dir := r.dir()
		if dir == "" {
			continue
		}
		switch meta := db.MetaPath(); {
		case dir == db.real:
			return fmt.Errorf("replica %q: %s is the database itself; give the replica a directory of its own", r.Name(), dir)
		case dir == meta || strings.HasPrefix(dir, meta+string(filepath.Separator)):
			return fmt.Errorf("replica %q: %s is in %s, which the library prunes; give the replica a directory of its own", r.Name(), dir, meta)
		case names[dir] != "":
			return fmt.Errorf("replicas %q and %q: both write to %s; give each a directory of its own", names[dir], r.Name(), dir)
		}
		names[dir] = r.Name()
	}
	return nil
}
